"""Signed envelopes: the seam where one Ed25519 key stands today and TUF metadata will stand.

A signature covers ``b"skerry-v1\\0" + kind + b"\\0" + payload``, so that a signed desired state can never be passed
off as a signed release. Ed25519: RFC 8032.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from skerry_contract.errors import SignatureError
from skerry_contract.v1.common_pb2 import Signature, SignedEnvelope

#: Kinds of envelope.
RELEASE = "release"
DESIRED = "desired"


class EnvelopeSigner(Protocol):
    """Makes envelopes that devices trust."""

    def sign(self, kind: str, payload: bytes) -> SignedEnvelope:
        """Wrap ``payload``; ``kind`` is :data:`RELEASE` or :data:`DESIRED`."""
        ...


class EnvelopeVerifier(Protocol):
    """Decides whether an envelope is trusted."""

    def verify(self, kind: str, envelope: SignedEnvelope) -> bytes:
        """Return the payload, exactly as it was signed.

        Raises:
            SignatureError: Another kind, no signature of a trusted key, or a signature that does not hold.
        """
        ...


def key_id(public_key: bytes) -> str:
    """Identifier of a raw 32-byte public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def _signed_bytes(kind: str, payload: bytes) -> bytes:
    return b"skerry-v1\0" + kind.encode() + b"\0" + payload


class Ed25519Signer:
    """Signs with one private key held in memory."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, kind: str, payload: bytes) -> SignedEnvelope:
        """See :class:`EnvelopeSigner`."""
        signature = self._private_key.sign(_signed_bytes(kind, payload))
        return SignedEnvelope(
            kind=kind,
            payload=payload,
            signatures=[Signature(key_id=key_id(self.public_key), signature=signature)],
        )


class Ed25519Verifier:
    """Trusts the raw public keys that it is given."""

    def __init__(self, public_keys: list[bytes]) -> None:
        if not public_keys:
            raise ValueError("at least one public key is needed")
        self._keys = {key_id(raw): Ed25519PublicKey.from_public_bytes(raw) for raw in public_keys}

    def verify(self, kind: str, envelope: SignedEnvelope) -> bytes:
        """See :class:`EnvelopeVerifier`."""
        if envelope.kind != kind:
            raise SignatureError(kind, f"the envelope is of kind {envelope.kind[:32]!r}")
        if len(envelope.signatures) > 16:
            raise SignatureError(kind, f"{len(envelope.signatures)} signatures are more than 16")
        message = _signed_bytes(kind, envelope.payload)
        for signature in envelope.signatures:
            key = self._keys.get(signature.key_id)
            if key is None:
                continue
            try:
                key.verify(signature.signature, message)
            except InvalidSignature as error:
                raise SignatureError(kind, f"the signature of key {signature.key_id} does not hold") from error
            return envelope.payload
        raise SignatureError(kind, "no signature of a trusted key")
