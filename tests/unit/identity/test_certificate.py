"""Certificates from the wire: what is believed, and that nothing malformed gets past as another error."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.link.identity import authority_of_tests
from skerry_agent.identity.certificate import (
    check_certificate,
    fingerprint,
    key_from_pem,
    key_to_pem,
    make_request,
    new_key,
    public_half,
    read_certificate,
    request_to_pem,
)
from skerry_server.fleet.authority import CertificateAuthority

DEVICE = "press-07"
ISSUED = datetime(2026, 1, 1, tzinfo=UTC)
KEY = new_key()
REQUEST = request_to_pem(make_request(KEY, DEVICE)).encode()
AUTHORITY = authority_of_tests()
CERTIFICATE = AUTHORITY.issue_device(REQUEST, device_id=DEVICE, now=ISSUED, days=90)
DER = x509.load_pem_x509_certificate(CERTIFICATE).public_bytes(Encoding.DER)


def to_pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def check(pem: bytes, *, device_id: str = DEVICE, authority: bytes = AUTHORITY.certificate_pem) -> None:
    check_certificate(pem, authority, device_id=device_id, public_key=public_half(KEY))


def test_what_a_certificate_says() -> None:
    facts = check_certificate(CERTIFICATE, AUTHORITY.certificate_pem, device_id=DEVICE, public_key=public_half(KEY))
    assert facts.device_id == DEVICE
    assert facts.not_before == ISSUED - timedelta(hours=1)
    assert facts.not_after == ISSUED + timedelta(days=90)
    assert facts.serial == AUTHORITY.check_issued(CERTIFICATE).serial


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: check(CERTIFICATE, device_id="press-08"), "is for 'press-07', this is 'press-08'"),
        (
            lambda: check(CERTIFICATE, authority=CertificateAuthority.create(now=ISSUED).certificate_pem),
            "not issued by the authority",
        ),
        (lambda: check(AUTHORITY.issue_server(["press-07"], now=ISSUED).certificate_pem), "is for 'Skerry server'"),
        (
            lambda: check(
                AUTHORITY.issue_device(
                    request_to_pem(make_request(new_key(), DEVICE)).encode(), device_id=DEVICE, now=ISSUED
                )
            ),
            "for another key",
        ),
        (lambda: check(CERTIFICATE + CERTIFICATE), "2 certificates instead of one"),
        (lambda: check(CERTIFICATE * 40), "at most 16384"),
        (lambda: check(b""), "no certificate in PEM"),
        (lambda: fingerprint(CERTIFICATE), "not the certificate of an authority"),
        (lambda: key_from_pem(CERTIFICATE), "no private key"),
        (
            lambda: key_from_pem(
                generate_private_key(SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            ),
            "no private key on P-256",
        ),
    ],
)
def test_what_is_not_believed(change: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        change()


def test_a_key_comes_back_as_it_was() -> None:
    assert public_half(key_from_pem(key_to_pem(KEY))) == public_half(KEY)
    assert fingerprint(AUTHORITY.certificate_pem) == AUTHORITY.fingerprint


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_mutated_certificate_is_never_believed_and_never_another_error(
    changes: list[tuple[int, int]], cut: bool
) -> None:
    mutated = bytearray(DER)
    for position, value in changes:
        mutated[position] = value
    der = bytes(mutated[: changes[0][0]] if cut else mutated)
    if der == DER:
        return
    for parse in (read_certificate, fingerprint):
        try:
            parse(to_pem(der))
        except ValueError:
            pass
    with pytest.raises(ValueError, match=r"certificate"):
        check(to_pem(der))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_error(data: bytes) -> None:
    for parse in (read_certificate, fingerprint, key_from_pem):
        for form in (data, to_pem(data)):
            with pytest.raises(ValueError, match=r"certificate|key"):
                parse(form)
