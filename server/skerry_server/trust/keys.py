"""Private keys of the roles of The Update Framework: one Ed25519 key per file, PKCS #8 PEM (RFC 8410).

A file is named after the role and the beginning of the key's identifier, ``root.1f0c9a….pem``: which keys count is
said by the signed metadata, never by what lies in a folder. A key is found by its identifier, so that root keys may
lie on a disk that is plugged in only when they are needed.

Invariants: a file appears whole or not at all, is never overwritten and never deleted here; a key in the data
directory that others may read is refused. A removable disk often cannot keep modes (FAT), so there it is not asked.
"""

from __future__ import annotations

import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key

from skerry_server.errors import PlatformError
from skerry_server.files import sync_folder, write_new

#: Characters of a key identifier in the name of its file.
_SHORT = 16


class MissingKeysError(PlatformError):
    """A private key that is needed lies in no folder that was looked into.

    Attributes:
        role: Role that it signs for.
        needed: How many of the role's keys are needed.
        found: How many were found.
    """

    def __init__(self, role: str, *, needed: int, found: int, folders: Sequence[Path]) -> None:
        self.role = role
        self.needed = needed
        self.found = found
        places = " or ".join(str(folder) for folder in folders)
        remedy = "insert the disk with the root keys and name it with --offline DIR"
        if role != "root":
            remedy = f"restore it from your backup, or make a new one with `skerry keys rotate {role}`"
        super().__init__(
            f"{needed} of the private keys of role {role} are needed, {found} found in {places}", remedy=remedy
        )


@dataclass(frozen=True)
class KeyFolder:
    """A folder of private keys.

    Attributes:
        path: Where it is; made with mode 0700 when the first key is written.
        private: Whether files that others may read are refused.
    """

    path: Path
    private: bool = True

    def create(self, role: str) -> CryptoSigner:
        """Make a key for ``role``.

        Raises:
            PlatformError: The folder cannot be written.
        """
        signer = CryptoSigner(Ed25519PrivateKey.generate())
        path = self._path(role, signer.public_key.keyid)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                write_new(temporary, signer.private_bytes, mode=0o600)  # PKCS #8 PEM, not encrypted
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(self.path)
        except OSError as error:
            raise PlatformError(
                f"no key can be written to {self.path} ({error.strerror})", remedy="make the folder writable for skerry"
            ) from error
        return signer

    def find(self, role: str, key: Key) -> CryptoSigner | None:
        """The private key of ``key``; ``None`` if it does not lie here.

        Raises:
            PlatformError: Its file cannot be read, may be read by others, or holds something else.
        """
        path = self._path(role, key.keyid)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if self.private and mode & 0o077:
                raise PlatformError(f"the key {path} has mode {mode:04o}", remedy=f"run `chmod 600 {path}`")
            signer = CryptoSigner(load_private(path.read_bytes(), path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        if signer.public_key.keyid != key.keyid:
            raise PlatformError(f"{path} holds another key than its name says", remedy="restore it from your backup")
        return signer

    def spare(self, role: str) -> CryptoSigner | None:
        """A key of a role that has none yet: left by somebody who was stopped before the role was signed.

        Raises:
            PlatformError: Its file cannot be read, may be read by others, or holds something else.
        """
        for path in sorted(self.path.glob(f"{role}.*.pem")):
            try:
                signer = CryptoSigner(load_private(path.read_bytes(), path))
            except OSError as error:
                raise _unreadable(path, error) from error
            return self.find(role, signer.public_key)
        return None

    def holds(self, role: str, key_id: str) -> bool:
        """Whether the file of a key lies here; nothing is read."""
        return self._path(role, key_id).is_file()

    def unused(self, used: Iterable[tuple[str, str]]) -> list[str]:
        """Names of the key files that are not of ``used``: (role, key identifier)."""
        known = {self._path(role, key_id).name for role, key_id in used}
        return sorted(path.name for path in self.path.glob("[!.]*.pem") if path.name not in known)

    def _path(self, role: str, key_id: str) -> Path:
        return self.path / f"{role}.{key_id[:_SHORT]}.pem"


class KeyRing:
    """Private keys of several folders, looked up when they are needed."""

    def __init__(self, online: KeyFolder, offline: Sequence[KeyFolder] = ()) -> None:
        """Prepare; nothing is read.

        Args:
            online: Folder of the control plane; new keys of roles other than root are made there.
            offline: Where root keys lie instead, if not there too.
        """
        self.online = online
        self._offline = offline
        self._folders = (*offline, online)

    def create(self, role: str) -> CryptoSigner:
        """Make a key of an online role; raises PlatformError."""
        return self.online.create(role)

    def create_root(self, number: int) -> list[CryptoSigner]:
        """Make root keys, dealt out to the offline disks if there are any; raises PlatformError."""
        folders = self._offline or (self.online,)
        return [folders[index % len(folders)].create("root") for index in range(number)]

    def spare(self, role: str) -> CryptoSigner:
        """A key for a role that has none yet, made unless one lies here; raises PlatformError."""
        return self.online.spare(role) or self.online.create(role)

    def signers(self, role: str, keys: Sequence[Key], threshold: int) -> list[CryptoSigner]:
        """Every private key of ``keys`` that can be found.

        Raises:
            MissingKeysError: Fewer than ``threshold``.
            PlatformError: A key file is damaged or open to others.
        """
        found = [signer for key in keys if (signer := self._find(role, key)) is not None]
        if len(found) < threshold:
            places = [folder.path for folder in self._folders]
            raise MissingKeysError(role, needed=threshold, found=len(found), folders=places)
        return found

    def _find(self, role: str, key: Key) -> CryptoSigner | None:
        for folder in self._folders:
            if (signer := folder.find(role, key)) is not None:
                return signer
        return None


def _unreadable(path: Path, error: OSError) -> PlatformError:
    return PlatformError(f"the key {path} cannot be read ({error.strerror})", remedy="make it readable for skerry")


def load_private(pem: bytes, path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key.

    Args:
        pem: PKCS #8 PEM.
        path: Named in the error.

    Raises:
        PlatformError: It is something else.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise PlatformError(f"{path} is not a PEM private key", remedy="restore it from your backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PlatformError(f"{path} is not an Ed25519 key", remedy="restore it from your backup")
    return key
