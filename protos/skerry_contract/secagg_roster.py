"""Who takes part in a session of secure aggregation, and how each knows that the others are devices of the fleet.

A device signs its two ephemeral keys, the terms of the session and its name with the key that the fleet's authority
certified. Server and devices check all signatures with :func:`check_entry`; a device accepts no roster without its own
entry exactly as it sent it, so that no roster of another session passes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.secagg_codec import Reader, write_bytes
from skerry_contract.secagg_graph import MAXIMUM_DEVICES
from skerry_contract.secagg_masks import KEY_BYTES

#: Longest certificate (bytes of DER) and signature (bytes, ECDSA on P-256).
CERTIFICATE_BYTES = 2_048
SIGNATURE_BYTES = 80
#: Longest roster (bytes).
ROSTER_BYTES = MAXIMUM_DEVICES * (CERTIFICATE_BYTES + SIGNATURE_BYTES + 2 * KEY_BYTES + 80)
#: What marks a device's certificate.
_DEVICE_URI = "urn:skerry:device:"
_UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class Entry:
    """What a device advertises.

    Attributes:
        device_id: Its name.
        sealing_key: X25519 public key (32 bytes) under which others seal shares for it.
        mask_key: X25519 public key (32 bytes) from which pairwise masks are made.
        certificate: Of its P-256 key (DER).
        signature: By that key, see :func:`sign_keys`.
    """

    device_id: str
    sealing_key: bytes
    mask_key: bytes
    certificate: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class Roster:
    """The devices of a session, ascending by name; a device's index is its place here.

    Attributes:
        entries: See there.
        terms: Digest of the session's terms.
    """

    entries: tuple[Entry, ...]
    terms: bytes

    @cached_property
    def digest(self) -> bytes:
        """Binds everything that follows to the terms, the devices and their keys."""
        return hashlib.sha256(b"skerry-secagg-roster-v1\0" + self.terms + self.encode()).digest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Device names in order."""
        return tuple(entry.device_id for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def encode(self) -> bytes:
        """Wire form."""
        parts = bytearray(len(self.entries).to_bytes(2, "big"))
        for entry in self.entries:
            write_bytes(parts, entry.device_id.encode())
            parts += entry.sealing_key + entry.mask_key
            write_bytes(parts, entry.certificate)
            write_bytes(parts, entry.signature)
        return bytes(parts)

    @classmethod
    def decode(cls, data: bytes, terms: bytes) -> Roster:
        """Read what :meth:`encode` wrote; nothing is verified.

        Raises:
            WireError: Broken, out of bounds, or not in ascending order of names.
        """
        reader = Reader("roster", data)
        count = int.from_bytes(reader.take(2), "big")
        if not 1 <= count <= MAXIMUM_DEVICES:
            raise WireError("roster", expected=f"1 to {MAXIMUM_DEVICES} devices", got=count)
        entries: list[Entry] = []
        for _ in range(count):
            name = reader.text(63)
            check_name(name, field="roster.device_id")
            sealing_key, mask_key = reader.take(KEY_BYTES), reader.take(KEY_BYTES)
            entries.append(
                Entry(name, sealing_key, mask_key, reader.bytes(CERTIFICATE_BYTES), reader.bytes(SIGNATURE_BYTES))
            )
        reader.end()
        names = [entry.device_id for entry in entries]
        if names != sorted(set(names)):
            raise WireError("roster", expected="distinct devices in ascending order", got=", ".join(names)[:150])
        return cls(tuple(entries), terms)


def sign_keys(key: EllipticCurvePrivateKey, terms: bytes, device_id: str, sealing_key: bytes, mask_key: bytes) -> bytes:
    """The signature (ECDSA, SHA-256) of an :class:`Entry`."""
    return key.sign(_keys_statement(terms, device_id, sealing_key, mask_key), ECDSA(SHA256()))


def sign_survivors(key: EllipticCurvePrivateKey, statement: bytes) -> bytes:
    """A device's word that it masked for these members and knows these survivors; see :func:`survivors_statement`."""
    return key.sign(statement, ECDSA(SHA256()))


def survivors_statement(roster: Roster, context: bytes, members: bytes, survivors: bytes) -> bytes:
    """What a device signs before anything is revealed.

    Args:
        roster: Of the session.
        context: From :func:`mask_context`.
        members: Bitmap of the devices for which was masked.
        survivors: Bitmap of the devices whose vectors are in the sum.
    """
    return b"skerry-secagg-survivors-v1\0" + hashlib.sha256(roster.digest + context + members + survivors).digest()


def mask_context(roster: Roster, training: bytes) -> bytes:
    """What masks are bound to.

    Args:
        roster: Of the session.
        training: :func:`~skerry_contract.secure_aggregation.training_digest` of what is trained.
    """
    return hashlib.sha256(b"skerry-secagg-context-v1\0" + roster.digest + training).digest()


def load_authority(pem: bytes) -> x509.Certificate:
    """The certificate of the fleet's authority; raises ValueError when it cannot be read."""
    return x509.load_pem_x509_certificate(pem)


def certificate_der(pem: bytes) -> bytes:
    """A certificate in the form of an :class:`Entry`; raises ValueError when it cannot be read."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def check_entry(entry: Entry, terms: bytes, authority: x509.Certificate) -> EllipticCurvePublicKey:
    """The certified key of a device that signed these keys under these terms. Certificates' times are not looked at.

    Raises:
        WireError: The authority did not certify a key for that device, or the signature does not hold; the field names
            the device.
    """
    place = f"roster[{entry.device_id}]"
    try:
        certificate = x509.load_der_x509_certificate(entry.certificate)
        certificate.verify_directly_issued_by(authority)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
        key = certificate.public_key()
    except _UNREADABLE as error:
        raise WireError(
            f"{place}.certificate",
            expected="a device's certificate of the fleet's authority",
            got=str(error) or "other",
        ) from error
    certified = [str(name.value) for name in names]
    if certified != [entry.device_id] or uris != [_DEVICE_URI + entry.device_id]:
        raise WireError(f"{place}.certificate", expected=f"one of {entry.device_id}", got=certified)
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise WireError(f"{place}.certificate", expected="a key on P-256", got="another")
    statement = _keys_statement(terms, entry.device_id, entry.sealing_key, entry.mask_key)
    check_signature(key, entry.signature, statement, field=f"{place}.signature")
    return key


def check_signature(key: EllipticCurvePublicKey, signature: bytes, statement: bytes, *, field: str) -> None:
    """Raise WireError unless ``key`` signed ``statement``."""
    try:
        key.verify(signature, statement, ECDSA(SHA256()))
    except InvalidSignature as error:
        raise WireError(field, expected="the signature of the device's certified key", got="another") from error


def _keys_statement(terms: bytes, device_id: str, sealing_key: bytes, mask_key: bytes) -> bytes:
    return b"skerry-secagg-keys-v1\0" + terms + sealing_key + mask_key + device_id.encode()
