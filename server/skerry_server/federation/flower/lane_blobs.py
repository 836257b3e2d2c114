"""Parameters too large for a message: files named by the SHA-256 of their content, in one folder of the control plane.

A campaign's process puts a model there and reads the devices' answers from there, without a copy through the SuperLink;
nodes fetch and put over the lane. What no message names any more is removed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

#: A file that no message names stays so long (seconds): it is written before the message that names it.
UNNAMED_S = 900.0


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
            incoming.stream.write(data)
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
        """To read it; raises BlobError."""
        try:
            return self._file(sha256).open("rb")
        except FileNotFoundError as error:
            raise BlobError(f"blob {sha256} is not there") from error

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
        self._file(sha256).unlink(missing_ok=True)

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
    """A file without a name yet; it vanishes unless it is kept."""

    def __init__(self, folder: Path) -> None:
        self._temporary = tempfile.NamedTemporaryFile(dir=folder, prefix=".incoming-", delete=False)  # noqa: SIM115
        self.stream: IO[bytes] = self._temporary.file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self.digest.update(data)
        self.stream.write(data)

    def keep(self, path: Path) -> None:
        """Give it its name."""
        self.stream.flush()
        Path(self._temporary.name).replace(path)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *error: object) -> None:
        self._temporary.close()
        Path(self._temporary.name).unlink(missing_ok=True)
