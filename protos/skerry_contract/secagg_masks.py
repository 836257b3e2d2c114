"""Keys, masks and sealed shares of secure aggregation.

Two devices agree on a key by X25519 (RFC 7748), every use gets a key of its own by HKDF-SHA256 (RFC 5869) bound to the
session, and a mask is the key stream of ChaCha20 (RFC 8439) under it: the same speed on processors with and without
AES instructions. Each derived key is used once, so that nonces are zero.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from skerry_contract.errors import WireError
from skerry_contract.secagg_ring import Ring, RingVector

#: Length of keys, seeds and digests (bytes).
KEY_BYTES = 32
#: What sealing adds (bytes).
SEAL_BYTES = 16
#: Key stream made at once (bytes): stays in a core's cache.
_CHUNK_BYTES = 1 << 16
_ZEROS = bytes(_CHUNK_BYTES)


def private_key(secret: bytes) -> X25519PrivateKey:
    """The X25519 private key that a secret of 32 bytes is."""
    return X25519PrivateKey.from_private_bytes(secret)


def agree(private: X25519PrivateKey, peer: bytes) -> bytes:
    """The secret (32 bytes) that ``private`` shares with a peer's public key.

    Raises:
        WireError: The peer's key is of small order, so that everybody would know the secret.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise WireError("public key", expected="a point of large order on X25519", got=str(error)) from error


def derive(secret: bytes, context: bytes, purpose: str, *parties: int) -> bytes:
    """A key for one purpose.

    Args:
        secret: From :func:`agree`, or a seed.
        context: Digest of what the key is bound to: the session and all that was agreed in it.
        purpose: Keeps the keys of different uses apart.
        parties: Indices of the devices, in the order of their roles.
    """
    info = b"skerry-secagg-" + purpose.encode() + b"".join(b"\0" + party.to_bytes(4, "big") for party in parties)
    return HKDF(SHA256(), KEY_BYTES, salt=context, info=info).derive(secret)


def commitment(secret: bytes, context: bytes, purpose: str, *parties: int) -> bytes:
    """Digest that binds its maker to a uniformly random secret without showing it."""
    digest = hashlib.sha256(b"skerry-secagg-commit-" + purpose.encode() + b"\0" + context)
    for party in parties:
        digest.update(party.to_bytes(4, "big"))
    digest.update(secret)
    return digest.digest()


def seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypt and authenticate (ChaCha20-Poly1305) under a key that is used for nothing else."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """What :func:`seal` hid.

    Raises:
        WireError: It was made with another key, or changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, context)
    except InvalidTag as error:
        raise WireError("sealed shares", expected="bytes sealed for this device", got="others") from error


def apply_mask(vector: RingVector, key: bytes, ring: Ring, *, subtract: bool = False) -> None:
    """Add the mask of ``key`` to ``vector`` in place, or take it away.

    Args:
        vector: Ring elements, any number.
        key: 32 bytes, for this mask only.
        ring: What the elements are.
        subtract: Take it away.
    """
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    buffer = bytearray(_CHUNK_BYTES)
    mask = ring.elements(buffer)
    for start in range(0, len(vector), len(mask)):
        part = vector[start : start + len(mask)]
        stream.update_into(_ZEROS, buffer)
        if subtract:
            part -= mask[: len(part)]
        else:
            part += mask[: len(part)]
