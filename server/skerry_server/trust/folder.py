"""The folder of the signed metadata on disk: ``<data>/trust/repository``.

Who writes holds the lock of the folder beside it; the kernel lets go of it when the process ends, however it ends.
Files are replaced whole. What the newest timestamp does not lead to is removed only after that timestamp is durable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from skerry_contract.limits import TRUST_FILE_BYTES
from skerry_server.errors import PlatformError
from skerry_server.files import exclusively, write_atomically
from skerry_server.trust.repository import DamagedRepositoryError, Repository, TrustFile, parse

#: How long a writer waits for another one (seconds).
LOCK_S = 10.0


class Write(Protocol):
    """Replaces a file durably; see ``files.write_atomically``."""

    def __call__(self, path: Path, data: bytes, *, mode: int = 0o600) -> None:
        """Write ``data``."""


class TrustFolder:
    """One folder of metadata."""

    def __init__(self, path: Path, *, write: Write = write_atomically) -> None:
        """Prepare; nothing is read.

        Args:
            path: ``<data>/trust``.
            write: Replaces a file durably.
        """
        self.path = path
        self._repository = path / "repository"
        self._write = write

    @contextlib.contextmanager
    def locked(self, *, deadline_s: float = LOCK_S) -> Iterator[None]:
        """Hold the folder.

        Raises:
            PlatformError: Another process holds it for longer than the deadline.
            OSError: The folder cannot be made.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusively(self.path / "lock", deadline_s=deadline_s):
            yield

    def exists(self) -> bool:
        """Whether there is a first root."""
        return (self._repository / "1.root.json").is_file()

    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever the folder does: names, times and sizes."""
        try:
            entries = [(path.name, path.stat()) for path in self._files()]
        except FileNotFoundError:  # a file was removed meanwhile
            return ()
        return tuple((name, status.st_mtime_ns, status.st_size) for name, status in entries)

    def newest_root(self) -> bytes:
        """The newest root; roots are only ever added, so nobody has to hold the folder. Raises PlatformError."""
        self._check_exists()
        version = 1
        while (self._repository / f"{version + 1}.root.json").is_file():
            version += 1
        try:
            return (self._repository / f"{version}.root.json").read_bytes()
        except OSError as error:
            raise self._unreadable(error) from error

    def load(self) -> Repository:
        """Read the folder.

        Raises:
            DamagedRepositoryError: Files are missing, too large or damaged.
            PlatformError: There is none, or it cannot be read.
        """
        self._check_exists()
        files: dict[str, bytes] = {}
        try:
            for path in self._files():
                if path.stat().st_size > TRUST_FILE_BYTES:
                    raise DamagedRepositoryError(path.name, f"is larger than {TRUST_FILE_BYTES} bytes")
                files[path.name] = path.read_bytes()
        except OSError as error:
            raise self._unreadable(error) from error
        return parse(files)

    def write(self, repository: Repository, files: Sequence[TrustFile]) -> Repository:
        """Write new files one after another, then remove what they replace; the caller holds the lock.

        Args:
            repository: What the folder holds.
            files: What is new, in the order of :func:`skerry_server.trust.planning.plan`.

        Returns:
            What the folder holds now.

        Raises:
            OSError: The disk is full, or the folder cannot be written; what is there still verifies.
        """
        after = repository.with_files(files)
        for file in files:
            self.add(file)
        self._sweep({file.name for file in after.files})
        return after

    def add(self, file: TrustFile) -> None:
        """Write one file; raises OSError."""
        self._repository.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(self._repository / file.name, file.data)

    def _check_exists(self) -> None:
        if not self.exists():
            raise PlatformError(
                f"there are no signed metadata in {self.path}", remedy="run `skerry keys init` or `skerry up`"
            )

    def _unreadable(self, error: OSError) -> PlatformError:
        return PlatformError(
            f"the signed metadata in {self.path} cannot be read ({error.strerror})",
            remedy="make the folder readable for skerry",
        )

    def _sweep(self, keep: set[str]) -> None:
        for path in self._repository.iterdir():
            if path.name not in keep and not path.name.endswith(".root.json"):
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._repository.glob("[!.]*.json"))
