"""The private certificate authority of a control plane: who may connect as which device.

One self-signed P-256 certificate signs everything directly: the server certificates of broker, device API and
SuperLink, and one client certificate per device. Nobody but this control plane and its devices trusts it. Profiles
follow RFC 5280; only ``cryptography`` is used, and nothing here knows the store.

Invariants: a device's private key is never seen here, only its request (CSR), whose subject and extensions are
ignored: the name comes from the caller. Serial numbers are 159 random bits and are written as lower-case hexadecimal.

>>> from datetime import UTC, datetime
>>> authority = CertificateAuthority.create(now=datetime(2030, 1, 1, tzinfo=UTC))
>>> len(authority.fingerprint)
64
"""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_server.errors import InvalidRequestError, PlatformError
from skerry_server.files import write_atomically

#: Life of a device's certificate (days).
DEVICE_DAYS = 90
#: Life of a server certificate (days).
SERVER_DAYS = 825
#: Largest PEM of a certificate or a request (characters).
PEM_BYTES = 16_384
#: Certificates are valid from a little before they are made: the clocks of this control plane's machines may differ.
_BACKDATED = timedelta(hours=1)
#: A revocation list is a local file that is rewritten at every change, so that its age says nothing: it must not end
#: by itself, because then the broker would refuse every device.
_LIST_LIFE = timedelta(days=20 * 365)
#: What ``cryptography`` raises for bytes that it cannot read or verify.
UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
#: What marks a device's certificate, so that no other certificate of ours passes for one.
_DEVICE_URI = "urn:skerry:device:"
#: Likewise of a gateway's server certificate, for whoever reads it.
_GATEWAY_URI = "urn:skerry:gateway:"


@dataclass(frozen=True)
class Issued:
    """A certificate with the key that was made for it.

    Attributes:
        key_pem: Private key, PKCS #8 PEM.
        certificate_pem: Certificate, PEM.
    """

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes


@dataclass(frozen=True)
class DeviceCertificate:
    """What a device's certificate of ours says.

    Attributes:
        device_id: Its device.
        serial: Serial number, lower-case hexadecimal.
        not_before: When it begins.
        not_after: When it ends.
        public_key: Key that it certifies, on P-256.
    """

    device_id: str
    serial: str
    not_before: datetime
    not_after: datetime
    public_key: EllipticCurvePublicKey


class CertificateAuthority:
    """Signs certificates and revocation lists with one key."""

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Use a key with its own certificate; :meth:`create` and :meth:`load` are the ways to get here.

        Raises:
            ValueError: The certificate is not for that key.
        """
        if certificate.public_key() != key.public_key():
            raise ValueError("the certificate is for another key")
        self._key = key
        self._certificate = certificate
        self._key_identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())

    @classmethod
    def create(cls, *, now: datetime, years: int = 20) -> CertificateAuthority:
        """A new authority whose certificate is valid from ``now`` for ``years``."""
        key = generate_private_key(SECP256R1())
        serial = x509.random_serial_number()
        # The number keeps the authorities of two control planes apart for whoever reads a log.
        name = _name(f"Skerry authority {serial & 0xFFFFFFFF:08x}")
        certificate = (
            _builder(name, name, key.public_key(), serial, now, timedelta(days=365 * years))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """The authority that :meth:`save` wrote.

        Raises:
            PlatformError: It is missing, broken, or its key can be read by others.
        """
        path = folder / "ca.key"
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            key_pem, certificate_pem = path.read_bytes(), (folder / "ca.pem").read_bytes()
        except OSError as error:
            raise PlatformError(
                f"the certificate authority {folder} cannot be read ({error.strerror})",
                remedy="run `skerry up` there first, or restore it from your backup",
            ) from error
        if mode & 0o077:
            raise PlatformError(f"the authority's key {path} has mode {mode:04o}", remedy=f"run `chmod 600 {path}`")
        try:
            key = load_pem_private_key(key_pem, password=None)
            if not isinstance(key, EllipticCurvePrivateKey):
                raise ValueError("the key is not on an elliptic curve")
            return cls(key, x509.load_pem_x509_certificate(certificate_pem))
        except UNREADABLE as error:
            raise PlatformError(
                f"the certificate authority {folder} is broken ({error})", remedy="restore it from your backup"
            ) from error

    def save(self, folder: Path) -> None:
        """Write ``ca.pem`` and then ``ca.key`` (owner only), each at once; whoever finds the key finds both.

        Raises:
            OSError: The folder cannot be written.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / "ca.pem", self.certificate_pem, mode=0o644)
        write_atomically(folder / "ca.key", _key_pem(self._key))

    @property
    def certificate_pem(self) -> bytes:
        """Its own certificate, which everybody may have."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def public_key(self) -> EllipticCurvePublicKey:
        """Key that verifies what it signs."""
        return self._key.public_key()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its own certificate (DER), 64 lower-case hexadecimal digits."""
        return self._certificate.fingerprint(SHA256()).hex()

    def issue_server(self, names: Sequence[str], *, now: datetime, days: int = SERVER_DAYS) -> Issued:
        """A key and a certificate for servers that are reached by ``names``, DNS names or IP addresses.

        Raises:
            ValueError: No name, or one that cannot be in a certificate.
        """
        if not names:
            raise ValueError("a server certificate needs a name")
        key = generate_private_key(SECP256R1())
        certificate = (
            self._leaf("Skerry server", key.public_key(), now, days)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .sign(self._key, SHA256())
        )
        return Issued(_key_pem(key), certificate.public_bytes(Encoding.PEM))

    def issue_client(self, name: str, *, now: datetime, days: int) -> Issued:
        """A key and a client certificate for a person or a tool; it never passes for a device's."""
        key = generate_private_key(SECP256R1())
        certificate = (
            self._leaf(name, key.public_key(), now, days)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, SHA256())
        )
        return Issued(_key_pem(key), certificate.public_bytes(Encoding.PEM))

    def issue_device(self, csr_pem: bytes, *, device_id: str, now: datetime, days: int = DEVICE_DAYS) -> bytes:
        """Certify the key of a request as a device's.

        Args:
            csr_pem: PKCS #10 request, PEM, at most 16 KiB; signed by its own key, which must be on P-256.
            device_id: Name of the device; what the request says about names is ignored.
            now: When the certificate begins, less an hour.
            days: How long it lasts.

        Returns:
            The certificate, PEM.

        Raises:
            InvalidRequestError: The request is unreadable, not signed by its own key, or has another kind of key.
        """
        key = _requested_key(csr_pem)
        return (
            self._leaf(check_name(device_id, field="device_id"), key, now, days)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_DEVICE_URI + device_id)]), critical=False
            )
            .sign(self._key, SHA256())
            .public_bytes(Encoding.PEM)
        )

    def issue_gateway(
        self, csr_pem: bytes, *, gateway_id: str, names: Sequence[str], now: datetime, days: int
    ) -> bytes:
        """Certify the key of a request as a gateway's server, which is reached by ``names``; never as a device's.

        Returns:
            The certificate, PEM.

        Raises:
            InvalidRequestError: As :meth:`issue_device`.
            ValueError: No name, or one that cannot be in a certificate.
        """
        if not names:
            raise ValueError("a server certificate needs a name")
        key = _requested_key(csr_pem)
        alternatives = [
            *(_general_name(name) for name in names),
            x509.UniformResourceIdentifier(_GATEWAY_URI + gateway_id),
        ]
        return (
            self._leaf(check_name(gateway_id, field="gateway_id"), key, now, days)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, SHA256())
            .public_bytes(Encoding.PEM)
        )

    def check_issued(self, certificate_pem: bytes) -> DeviceCertificate:
        """What a device's certificate says, if we issued it. Neither its time nor a revocation is looked at.

        Raises:
            InvalidRequestError: It is unreadable, not signed by this authority, or not a device's.
        """
        try:
            if len(certificate_pem) > PEM_BYTES:
                raise ValueError("it is too long")
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            certificate.verify_directly_issued_by(self._certificate)
            return _read_device(certificate)
        except UNREADABLE as error:
            raise InvalidRequestError(
                "certificate", expected="a device's certificate of this control plane", got=str(error) or "another"
            ) from error

    def revocation_list(
        self, revoked: Sequence[tuple[str, datetime]], *, now: datetime, number: int | None = None
    ) -> bytes:
        """The list of revoked certificates (CRL), PEM.

        Args:
            revoked: Serial number (hexadecimal) and moment of each.
            now: The ``thisUpdate`` of the list. OpenSSL keeps the list with the newest one, in whole seconds.
            number: Counts the lists; taken from ``now`` unless given.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(now + _LIST_LIFE)
            .add_extension(x509.CRLNumber(int(now.timestamp()) if number is None else number), critical=False)
            .add_extension(self._authority_identifier(), critical=False)
        )
        for serial, moment in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(moment).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def _leaf(self, name: str, key: EllipticCurvePublicKey, now: datetime, days: int) -> x509.CertificateBuilder:
        life = timedelta(days=days)
        serial = x509.random_serial_number()
        return (
            _builder(self._certificate.subject, _name(name), key, serial, now, life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._authority_identifier(), critical=False)
        )

    def _authority_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_identifier)


def certificate_end(certificate_pem: bytes) -> datetime:
    """When a certificate ends; raises ValueError if it cannot be read."""
    return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc


def utc_now() -> datetime:
    """The time in the form that this module takes."""
    return datetime.now(UTC)


def read_request(csr_pem: bytes) -> x509.CertificateSigningRequest:
    """A certificate request; nothing about it is checked but that it can be read.

    Raises:
        InvalidRequestError: It cannot, or has more than 16 KiB.
    """
    try:
        if len(csr_pem) > PEM_BYTES:
            raise ValueError("it is too long")
        return x509.load_pem_x509_csr(csr_pem)
    except UNREADABLE as error:
        raise _unreadable_request(error) from error


def _requested_key(csr_pem: bytes) -> EllipticCurvePublicKey:
    request = read_request(csr_pem)
    try:
        key, signed = request.public_key(), request.is_signature_valid
    except UNREADABLE as error:
        raise _unreadable_request(error) from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise InvalidRequestError("csr", expected="a key on the curve P-256", got="another kind of key")
    if not signed:
        raise InvalidRequestError("csr", expected="a request signed by its own key", got="a wrong signature")
    return key


def _unreadable_request(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(
        "csr", expected="a PKCS #10 certificate request in PEM of at most 16 KiB", got=str(error) or "another"
    )


def _read_device(certificate: x509.Certificate) -> DeviceCertificate:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    key = certificate.public_key()
    if len(names) != 1 or not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("not a device's certificate")
    try:
        device_id = check_name(str(names[0].value), field="common_name")
    except WireError as error:
        raise ValueError("not a device's certificate") from error
    if uris != [_DEVICE_URI + device_id]:
        raise ValueError("not a device's certificate")
    return DeviceCertificate(
        device_id,
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        key,
    )


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
