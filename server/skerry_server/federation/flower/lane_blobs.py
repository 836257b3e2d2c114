"""Parameters too large for a message: files named by the SHA-256 of their content, in one folder of the control plane.

A campaign's process puts a model there and reads the devices' answers from there, without a copy through the SuperLink;
nodes fetch and put over the lane. What no message names any more is removed.

A file that is written anew costs the kernel ten times what writing over one costs, whose pages are there already. So a
few files that nobody names any more are kept as spares, and what comes in next is written over one of them. Who reads a
blob holds a shared lock on its file (``flock(2)``), who writes over a spare an exclusive one: a reader that is still at
it when the blob is removed keeps what it reads, and a file is written over only when nobody reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import IO

#: A file that no message names stays so long (seconds): it is written before the message that names it.
UNNAMED_S = 900.0
#: Files kept to be written over, and what is worth it (bytes).
SPARES = 4
SPARE_BYTES = 1 << 20
_SPARE, _INCOMING = ".spare-", ".incoming-"


class BlobError(Exception):
    """A blob is not there, or not what its name says."""


class BlobFolder:
    """The folder; used by several processes at once."""

    def __init__(self, path: Path) -> None:
        """Make the folder if it is not there."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path

    def put(self, sha256: str, data: bytes) -> None:
        """Write a blob of one's own; one that is there is kept."""
        try:
            os.utime(self._file(sha256))
            return
        except FileNotFoundError:
            pass
        with Incoming(self._path) as incoming:
            incoming.append(data)
            incoming.keep(self._file(sha256))

    def receive(self) -> Incoming:
        """A file that grows while a blob comes in."""
        return Incoming(self._path)

    def keep(self, incoming: Incoming, sha256: str) -> None:
        """Take what came in.

        Raises:
            BlobError: It has another digest.
        """
        if incoming.digest.hexdigest() != sha256:
            raise BlobError(f"the content has the digest {incoming.digest.hexdigest()}, not {sha256}")
        incoming.keep(self._file(sha256))

    def size(self, sha256: str) -> int:
        """Bytes of a blob; raises BlobError."""
        try:
            return self._file(sha256).stat().st_size
        except FileNotFoundError as error:
            raise BlobError(f"blob {sha256} is not there") from error

    def open(self, sha256: str) -> IO[bytes]:
        """To read it; it stays what it is until it is closed. Raises BlobError."""
        path = self._file(sha256)
        try:
            stream = path.open("rb")
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    return stream
            except BaseException:
                stream.close()
                raise
        except (FileNotFoundError, BlockingIOError) as error:
            raise BlobError(f"blob {sha256} is not there") from error
        stream.close()
        raise BlobError(f"blob {sha256} is not there")

    def read(self, sha256: str, size: int) -> bytes:
        """All of it; it was checked when it came in.

        Raises:
            BlobError: It is not there, or of another size.
        """
        with self.open(sha256) as stream:
            data = stream.read()
        if len(data) != size:
            raise BlobError(f"blob {sha256} has {len(data)} bytes, not {size}")
        return data

    def remove(self, sha256: str) -> None:
        """Remove a blob; none is no error."""
        path = self._file(sha256)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size >= SPARE_BYTES and len(list(self._path.glob(f"{_SPARE}*"))) < SPARES:
                path.rename(self._path / f"{_SPARE}{secrets.token_hex(8)}")
            else:
                path.unlink()

    def sweep(self, named: Callable[[str], bool]) -> int:
        """Remove what nobody names and nobody has touched for :data:`UNNAMED_S`; returns how many."""
        removed = 0
        before = time.time() - UNNAMED_S
        for file in self._path.iterdir():
            if not named(file.name) and file.stat().st_mtime < before:
                file.unlink(missing_ok=True)
                removed += 1
        return removed

    def _file(self, sha256: str) -> Path:
        return self._path / sha256


class Incoming:
    """A file without a blob's name yet, written over a spare if there is one; it vanishes unless it is kept."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{_INCOMING}{secrets.token_hex(8)}"
        self._stream = _spare(folder, self._path) or FileIO(self._path, "x", opener=_private)
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self.digest.update(data)
        self.append(data)

    def append(self, data: bytes | memoryview) -> None:
        """Append what is known to fit the name."""
        left = memoryview(data).cast("B")
        while left:
            left = left[self._stream.write(left) :]

    def keep(self, path: Path) -> None:
        """Give it its name."""
        self._stream.truncate()  # a spare may have been longer
        fcntl.flock(self._stream, fcntl.LOCK_UN)  # nothing is written any more, and under its name it may be read
        self._path.replace(path)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()  # and with it the lock
        self._path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, whatever the folder and the umask allow."""
    return os.open(path, flags, 0o600)


def _spare(folder: Path, path: Path) -> FileIO | None:
    """A spare, renamed to ``path`` and locked for writing over; None if there is none that nobody reads."""
    for spare in folder.glob(f"{_SPARE}*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another writer took it; somebody reads it yet
            stream = FileIO(spare, "r+")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(stream.fileno()), spare.stat()):
                    spare.rename(path)
                    os.utime(path)
                    return stream
            except BaseException:
                stream.close()
                raise
            stream.close()
    return None
