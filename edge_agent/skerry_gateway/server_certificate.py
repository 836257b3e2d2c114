"""The certificate by which the site's devices know this gateway: from the fleet's authority, for a key made here.

It is asked for when there is none, when it is not for the address that the operator gave, and in the last third of its
life. Key and certificate are two files; a start between their two writes finds a pair that does not match, which counts
as none.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from skerry_agent.files import write_atomically
from skerry_agent.identity.certificate import (
    key_from_pem,
    key_to_pem,
    make_request,
    new_key,
    public_half,
    request_to_pem,
)
from skerry_gateway.config import GatewayLayout

logger = logging.getLogger(__name__)


class CertificateError(Exception):
    """The certificate that came is not one that this gateway can use."""


def host_of(address: str) -> str:
    """The host of host:port."""
    return address.rpartition(":")[0].strip("[]")


def fits(layout: GatewayLayout, host: str, now: datetime) -> bool:
    """Whether there is a pair for ``host``, of this authority, with more than a third of its life left.

    Args:
        layout: Where it lies.
        host: Of the gateway's address; empty while that is not known, then any will do.
        now: The time that this gateway believes.
    """
    try:
        key = key_from_pem(layout.server_key.read_bytes())
        certificate = _checked(layout.server_certificate.read_bytes(), layout.authority.read_bytes(), public_half(key))
    except (OSError, ValueError, CertificateError):
        return False
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now < end - (end - begin) / 3 and (not host or host in _names(certificate))


def renew(layout: GatewayLayout, gateway_id: str, host: str, ask: Callable[[str], str]) -> None:
    """Make a key, have it certified, and write both.

    Args:
        layout: Where they go.
        gateway_id: Who asks.
        host: That the certificate must be for.
        ask: Trades a request (PEM) for a certificate (PEM).

    Raises:
        CertificateError: What came is of no use; the old pair stands.
        OSError: It cannot be written.
    """
    key = new_key()
    pem = ask(request_to_pem(make_request(key, gateway_id))).encode()
    certificate = _checked(pem, layout.authority.read_bytes(), public_half(key))
    if host not in _names(certificate):
        raise CertificateError(f"it is for {', '.join(sorted(_names(certificate)))}, not for {host}")
    layout.server_key.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(layout.server_key, key_to_pem(key))
    write_atomically(layout.server_certificate, pem, mode=0o644)
    logger.info("a server certificate for %s until %s", host, certificate.not_valid_after_utc)


def _checked(pem: bytes, authority_pem: bytes, public: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateError(f"it is not of the fleet's authority ({error or 'a wrong signature'})") from error
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or _spki(key) != public:
        raise CertificateError("it is for another key")
    return certificate


def _spki(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(address) for address in found.get_values_for_type(x509.IPAddress)}
    return addresses | set(found.get_values_for_type(x509.DNSName))


def same_host(host: str) -> str:
    """An address in the form in which a certificate tells it; a DNS name as it is."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host
