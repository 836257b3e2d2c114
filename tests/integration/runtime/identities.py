"""Identities as an enrolment leaves them: a folder with ``key.pem``, ``certificate.pem`` and ``authority.pem``."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from skerry_server.fleet.authority import CertificateAuthority, utc_now


@dataclass(frozen=True)
class Request:
    """A key that never leaves the device, and the request for it."""

    key: EllipticCurvePrivateKey
    csr: str

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_request() -> Request:
    """A fresh key on P-256 with its request, whose subject says something that must not count."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    return Request(key, request.public_bytes(Encoding.PEM).decode())


def write_identity(folder: Path, *, key_pem: bytes, certificate_pem: bytes, authority_pem: bytes) -> Path:
    """Lay an identity out as a device does; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.pem").write_bytes(key_pem)
    (folder / "key.pem").chmod(0o600)
    (folder / "certificate.pem").write_bytes(certificate_pem)
    (folder / "authority.pem").write_bytes(authority_pem)
    return folder


def make_identity(
    authority: CertificateAuthority,
    device_id: str,
    folder: Path,
    *,
    trusted: bytes = b"",
    now: datetime | None = None,
    days: int = 90,
) -> Path:
    """An identity that ``authority`` certifies, without a store.

    Args:
        authority: Who signs.
        device_id: For which device.
        folder: Where it goes.
        trusted: Authority of the servers, PEM, if another one.
        now: When the certificate begins.
        days: How long it lasts.
    """
    request = new_request()
    certificate = authority.issue_device(request.csr.encode(), device_id=device_id, now=now or utc_now(), days=days)
    return write_identity(
        folder,
        key_pem=request.key_pem,
        certificate_pem=certificate,
        authority_pem=trusted or authority.certificate_pem,
    )


def client_tls(folder: Path) -> ssl.SSLContext:
    """How a device connects with an identity; checks the server's name and authority."""
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context
