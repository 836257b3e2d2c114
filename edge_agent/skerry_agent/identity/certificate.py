"""Keys, requests and certificates of a device as values: bytes in, facts out. Nothing here touches a file or a clock.

A device's key is on P-256 and is made here; what leaves the device is a PKCS #10 request (RFC 2986), and at renewal a
signature by the key that is being replaced, which proves possession even when its certificate has ended.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

#: Largest certificate that is read (bytes of PEM).
PEM_BYTES = 16_384
#: What the old key signs at renewal: this, then the request (DER).
RENEWAL_CONTEXT = b"skerry-renew-v1\0"
#: What the library raises at malformed certificates; ValueError is only the most frequent.
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
#: Hexadecimal digits of the authority's fingerprint in an enrolment token: 128 bits.
FINGERPRINT_DIGITS = 32


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says.

    Attributes:
        device_id: Common name of its subject.
        serial: Serial number, lower-case hexadecimal.
        not_before: When it begins (UTC).
        not_after: When it ends (UTC).
        public_key: The key that it certifies (DER, SubjectPublicKeyInfo).
    """

    device_id: str
    serial: str
    not_before: datetime
    not_after: datetime
    public_key: bytes


def new_key() -> EllipticCurvePrivateKey:
    """A new private key on P-256."""
    return generate_private_key(SECP256R1())


def key_to_pem(key: EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> EllipticCurvePrivateKey:
    """The key of :func:`key_to_pem`.

    Raises:
        ValueError: No private key on P-256.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"no private key ({error})") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("no private key on P-256")
    return key


def public_half(key: EllipticCurvePrivateKey) -> bytes:
    """The public key (DER, SubjectPublicKeyInfo), comparable with :attr:`CertificateFacts.public_key`."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def make_request(key: EllipticCurvePrivateKey, device_id: str) -> x509.CertificateSigningRequest:
    """A request that ``key`` be certified as the key of ``device_id``."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())


def request_to_pem(request: x509.CertificateSigningRequest) -> str:
    """The request as text."""
    return request.public_bytes(Encoding.PEM).decode()


def prove_possession(key: EllipticCurvePrivateKey, request: x509.CertificateSigningRequest) -> str:
    """Signature (base64, ECDSA with SHA-256) by the key that ``request`` is to replace."""
    signature = key.sign(RENEWAL_CONTEXT + request.public_bytes(Encoding.DER), ECDSA(SHA256()))
    return base64.b64encode(signature).decode()


def read_certificate(pem: bytes) -> CertificateFacts:
    """What a certificate says; whether to believe it is for :func:`check_certificate`.

    Raises:
        ValueError: Not one certificate in PEM with one common name.
    """
    return _facts(_load(pem))


def check_certificate(pem: bytes, authority_pem: bytes, *, device_id: str, public_key: bytes) -> CertificateFacts:
    """What a certificate says, if the authority issued it for this device and this key. Its times are not looked at.

    Args:
        pem: The certificate.
        authority_pem: Certificate of the one authority that is trusted.
        device_id: This device.
        public_key: The key that was to be certified (DER, SubjectPublicKeyInfo).

    Raises:
        ValueError: It is not that; the text says why.
    """
    certificate = _load(pem)
    facts = _facts(certificate)
    try:
        certificate.verify_directly_issued_by(_load(authority_pem))
    except (*_MALFORMED, InvalidSignature) as error:
        raise ValueError("the certificate is not issued by the authority that this device trusts") from error
    if facts.device_id != device_id:
        raise ValueError(f"the certificate is for {facts.device_id[:63]!r}, this is {device_id!r}")
    if facts.public_key != public_key:
        raise ValueError("the certificate is for another key than the one that was sent")
    if facts.not_after <= facts.not_before:
        raise ValueError("the certificate ends before it begins")
    return facts


def fingerprint(authority_pem: bytes) -> str:
    """SHA-256 of an authority's certificate (DER), 64 lower-case hexadecimal digits.

    Raises:
        ValueError: Not one certificate of an authority.
    """
    certificate = _load(authority_pem)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (*_MALFORMED, x509.ExtensionNotFound) as error:
        raise ValueError("not the certificate of an authority") from error
    if not constraints.ca:
        raise ValueError("not the certificate of an authority")
    return certificate.fingerprint(SHA256()).hex()


def _load(pem: bytes) -> x509.Certificate:
    if len(pem) > PEM_BYTES:
        raise ValueError(f"a certificate of {len(pem)} bytes; at most {PEM_BYTES}")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except _MALFORMED as error:
        raise ValueError("no certificate in PEM") from error
    if len(certificates) != 1:
        raise ValueError(f"{len(certificates)} certificates instead of one")
    return certificates[0]


def _facts(certificate: x509.Certificate) -> CertificateFacts:
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _MALFORMED as error:
        raise ValueError(f"a certificate that cannot be read ({error})") from error
    if len(names) != 1:
        raise ValueError(f"a certificate with {len(names)} common names")
    return CertificateFacts(
        device_id=str(names[0].value),
        serial=f"{certificate.serial_number:x}",
        not_before=begin,
        not_after=end,
        public_key=key,
    )


def certificate_der(pem: bytes) -> bytes:
    """The first certificate of a PEM file in DER; raises ValueError when it cannot be read."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
