"""The key that signs releases and desired states: one Ed25519 key in one file, replaced when it is rotated.

The file is PKCS #8 PEM (RFC 8410), owner-only. It appears whole or not at all, and of two processes that make it at
the same moment both end up with the same key. A signer looks at the file before every signature, so that a rotation
reaches every running process. Which keys devices trust is said by the signed metadata (``skerry_server.trust``), not
here. Callers see only :class:`skerry_contract.signing.EnvelopeSigner`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from skerry_contract.signing import Ed25519Signer
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_server.config import ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.files import sync_folder, write_atomically, write_new


class KeyFileSigner:
    """Signs with the key that lies in a file now."""

    def __init__(self, path: Path) -> None:
        """Read the key.

        Raises:
            PlatformError: The file is readable by others, is no Ed25519 key, or cannot be read.
        """
        self._path = path
        self._read: tuple[tuple[int, int, int], Ed25519Signer] | None = None
        self._current()

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes; raises PlatformError like the constructor."""
        return self._current().public_key

    def sign(self, kind: str, payload: bytes) -> SignedEnvelope:
        """See :class:`skerry_contract.signing.EnvelopeSigner`; raises PlatformError like the constructor."""
        return self._current().sign(kind, payload)

    def _current(self) -> Ed25519Signer:
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_mode)
            read = self._read
            if read is None or read[0] != seen:
                read = self._read = (seen, Ed25519Signer(_load(self._path)))
        except OSError as error:
            raise PlatformError(
                f"the signing key {self._path} cannot be read ({error.strerror})",
                remedy="make it readable for skerry, or restore it from your backup",
            ) from error
        return read[1]


def signing_key_path(layout: ServerLayout) -> Path:
    """Where the private key lies."""
    return layout.keys / "release-signing.pem"


def load_or_create_key(layout: ServerLayout) -> KeyFileSigner:
    """The signer of this control plane; the first call makes its key.

    Raises:
        PlatformError: The file is readable by others, is no Ed25519 key, or cannot be read or written.
    """
    path = signing_key_path(layout)
    try:
        if not path.exists():
            _create(path)
        return KeyFileSigner(path)
    except OSError as error:
        raise PlatformError(
            f"the signing key {path} cannot be used ({error.strerror})", remedy="make its folder writable for skerry"
        ) from error


def rotate_key(layout: ServerLayout) -> KeyFileSigner:
    """Replace the key by a new one; the old one is gone.

    Raises:
        OSError: The file cannot be written; the old key stays.
    """
    path = signing_key_path(layout)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, _new_key(), mode=0o600)
    return KeyFileSigner(path)


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    pem = _new_key()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_new(temporary, pem, mode=0o600)
        # A link, unlike a rename, never replaces a key that another process made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _load(path: Path) -> Ed25519PrivateKey:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise PlatformError(f"the signing key {path} has mode {mode:04o}", remedy=f"run `chmod 600 {path}`")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise PlatformError(f"{path} is not a PEM private key", remedy="restore it from your backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PlatformError(f"{path} is not an Ed25519 key", remedy="restore it from your backup")
    return key
