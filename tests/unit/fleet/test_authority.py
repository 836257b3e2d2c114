"""What the certificate authority signs, and what it refuses to read; checked with another implementation: OpenSSL."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.runtime.identities import new_request
from skerry_contract.errors import WireError
from skerry_server.errors import InvalidRequestError, PlatformError
from skerry_server.fleet.authority import CertificateAuthority

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
AUTHORITY = CertificateAuthority.create(now=NOW)


def _csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def test_a_device_certificate_says_what_the_caller_says_and_not_what_the_request_says() -> None:
    request = new_request()  # its subject is CN=server
    pem = AUTHORITY.issue_device(request.csr.encode(), device_id="press-07", now=NOW)
    read = AUTHORITY.check_issued(pem)
    assert read.device_id == "press-07"
    assert read.public_key == request.key.public_key()
    assert (read.not_before, read.not_after) == (NOW - timedelta(hours=1), NOW + timedelta(days=90))
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=press-07"
    assert read.serial == f"{certificate.serial_number:x}"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _broken_signature() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(new_request().csr.encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("csr", "got"),
    [
        (_broken_signature(), "a wrong signature"),
        (_csr(rsa.generate_private_key(65537, 2048)), "another kind of key"),
        (_csr(ec.generate_private_key(ec.SECP384R1())), "another kind of key"),
        (b"", "PEM"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "csr"),
        (new_request().csr.encode() + b" " * 20_000, "too long"),
        (AUTHORITY.certificate_pem, "csr"),
    ],
)
def test_a_request_that_is_not_right_is_refused_by_name(csr: bytes, got: str) -> None:
    with pytest.raises(InvalidRequestError, match=got) as caught:
        AUTHORITY.issue_device(csr, device_id="a", now=NOW)
    assert caught.value.field == "csr"


def test_a_name_that_would_be_a_wildcard_is_never_certified() -> None:
    for name in ("+", "#", "a/b", "CN=a", ""):
        with pytest.raises(WireError):
            AUTHORITY.issue_device(new_request().csr.encode(), device_id=name, now=NOW)


def test_only_a_device_certificate_of_this_authority_passes_for_one() -> None:
    foreign = CertificateAuthority.create(now=NOW)
    csr = new_request().csr.encode()
    for pem in (
        foreign.issue_device(csr, device_id="a", now=NOW),
        AUTHORITY.issue_client("operator", now=NOW, days=1).certificate_pem,
        AUTHORITY.issue_client("a", now=NOW, days=1).certificate_pem,
        AUTHORITY.issue_server(["a"], now=NOW).certificate_pem,
        AUTHORITY.certificate_pem,
        b"",
        b"x" * 20_000,
        csr,
    ):
        with pytest.raises(InvalidRequestError) as caught:
            AUTHORITY.check_issued(pem)
        assert caught.value.field == "certificate"


def test_a_certificate_that_ended_is_still_read() -> None:
    pem = AUTHORITY.issue_device(new_request().csr.encode(), device_id="a", now=NOW - timedelta(days=400))
    assert AUTHORITY.check_issued(pem).not_after == NOW - timedelta(days=310)


_REQUEST = new_request()
_CERTIFICATE = AUTHORITY.issue_device(_REQUEST.csr.encode(), device_id="a", now=NOW)


def _certified_key(csr: bytes) -> object:
    return AUTHORITY.check_issued(AUTHORITY.issue_device(csr, device_id="a", now=NOW)).public_key


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_changed_bit_of_a_certificate_or_request_changes_what_it_says(at: int, bit: int) -> None:
    reads: list[tuple[str, str, Callable[[bytes], object]]] = [
        (_CERTIFICATE.decode(), "CERTIFICATE", AUTHORITY.check_issued),
        (_REQUEST.csr, "CERTIFICATE REQUEST", _certified_key),
    ]
    for original, label, read in reads:
        der = bytearray(ssl.PEM_cert_to_DER_cert(original.replace(label, "CERTIFICATE")))
        der[at % len(der)] ^= 1 << bit
        changed = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", label).encode()
        # Refused; or read as before: the number of unused bits of the signature stands in a byte that nobody signs.
        with contextlib.suppress(InvalidRequestError):
            assert read(changed) == read(original.encode())


def test_it_is_kept_for_the_owner_only_and_read_back(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path / "pki")
    assert (tmp_path / "pki" / "ca.key").stat().st_mode & 0o777 == 0o600
    loaded = CertificateAuthority.load(tmp_path / "pki")
    assert loaded.fingerprint == AUTHORITY.fingerprint
    assert loaded.check_issued(loaded.issue_device(new_request().csr.encode(), device_id="a", now=NOW))
    (tmp_path / "pki" / "ca.key").chmod(0o644)
    with pytest.raises(PlatformError, match="chmod 600"):
        CertificateAuthority.load(tmp_path / "pki")


@pytest.mark.parametrize(
    ("key", "certificate"),
    [(b"", None), (b"x", None), (None, b""), (None, CertificateAuthority.create(now=NOW).certificate_pem)],
)
def test_a_broken_or_foreign_half_is_told(tmp_path: Path, key: bytes | None, certificate: bytes | None) -> None:
    AUTHORITY.save(tmp_path)
    if key is not None:
        (tmp_path / "ca.key").write_bytes(key)
    if certificate is not None:
        (tmp_path / "ca.pem").write_bytes(certificate)
    with pytest.raises(PlatformError, match="is broken"):
        CertificateAuthority.load(tmp_path)


def test_openssl_agrees_about_names_chain_purpose_and_revocation(tmp_path: Path) -> None:
    server = AUTHORITY.issue_server(["localhost", "127.0.0.1", "::1", "edge.example"], now=NOW)
    device = AUTHORITY.issue_device(new_request().csr.encode(), device_id="a", now=NOW)
    serial = AUTHORITY.check_issued(device).serial
    files = {
        "ca.pem": AUTHORITY.certificate_pem,
        "server.pem": server.certificate_pem,
        "a.pem": device,
        "empty.pem": AUTHORITY.revocation_list([], now=NOW - timedelta(days=1)),
        "listed.pem": AUTHORITY.revocation_list([(serial, NOW)], now=NOW - timedelta(days=1)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def verify(file: str, *options: str) -> str:
        command = ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW.timestamp())), "-CAfile", "ca.pem"]
        done = subprocess.run(
            [*command, *options, file], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout.strip() or done.stderr

    assert verify("server.pem", "-purpose", "sslserver", "-verify_hostname", "edge.example") == "server.pem: OK"
    assert verify("server.pem", "-purpose", "sslserver", "-verify_ip", "::1") == "server.pem: OK"
    assert "unsuitable certificate purpose" in verify("a.pem", "-purpose", "sslserver")
    assert "unsuitable certificate purpose" in verify("server.pem", "-purpose", "sslclient")
    assert verify("a.pem", "-purpose", "sslclient", "-crl_check", "-CRLfile", "empty.pem") == "a.pem: OK"
    assert "certificate revoked" in verify("a.pem", "-crl_check", "-CRLfile", "listed.pem")
