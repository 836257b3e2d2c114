"""One file on its way: a sparse temporary file, and a bitmap of the chunks that are in it.

Invariants: a chunk is written only after its digest was checked; its bit is set only after it was written; after a
restart every claimed chunk is read and checked again, so that a bitmap that the power cut left ahead of the data costs
a chunk and never a wrong file. The final name appears by rename, after the whole file was checked and flushed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from pathlib import Path

from skerry_agent.files import BLOCK_BYTES, DISK, Disk
from skerry_contract.errors import WireError
from skerry_contract.manifest import chunk_count
from skerry_contract.v1.release_pb2 import FileEntry

log = logging.getLogger(__name__)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def hash_file(path: Path) -> bytes:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def holds(path: Path, entry: FileEntry) -> bool:
    """Whether ``path`` is exactly the file of ``entry``."""
    try:
        return path.stat().st_size == entry.size and hash_file(path) == entry.sha256
    except OSError:
        return False


class FileDownload:
    """Collects the chunks of one file below ``folder``; used by one thread."""

    def __init__(self, entry: FileEntry, folder: Path, disk: Disk = DISK) -> None:
        """``entry`` is from a checked manifest; nothing is touched before :meth:`open`."""
        self.entry = entry
        self.name = entry.sha256.hex()
        self.path = folder / self.name
        self.count = chunk_count(entry.size, entry.chunk_bytes)
        self._part = folder / f"{self.name}.part"
        self._map = folder / f"{self.name}.map"
        self._disk = disk
        self._have = bytearray(self.count)
        self._part_file = -1
        self._map_file = -1

    @property
    def begun(self) -> bool:
        """Whether something of it is on disk already."""
        return self._part.exists()

    @property
    def done(self) -> int:
        """Chunks on disk."""
        return sum(self._have)

    @property
    def complete(self) -> bool:
        """Whether every chunk is on disk."""
        return all(self._have)

    def missing(self) -> list[int]:
        """Chunks that are not on disk, ascending."""
        return [index for index, have in enumerate(self._have) if not have]

    def missing_bytes(self) -> int:
        """Bytes that must still be written."""
        size, chunk = self.entry.size, self.entry.chunk_bytes
        return sum(min(chunk, size - index * chunk) for index in self.missing())

    def open(self) -> None:
        """Find what is on disk already and prepare for more; may be called again after :meth:`close`.

        Raises:
            OSError: The disk is full or broken.
        """
        self.close()
        self._have = bytearray(self.count)
        if self.path.exists():
            if self.path.stat().st_size == self.entry.size:
                self._have = bytearray(b"\1" * self.count)
                return
            self._disk.unlink(self.path)
        fresh = not self._part.exists() or not self._map.exists()
        if fresh:
            self._disk.unlink(self._map)
        self._part_file = self._disk.create(self._part, truncate=fresh)
        self._disk.truncate(self._part_file, self.entry.size)
        self._map_file = self._disk.create(self._map, truncate=fresh)
        if not fresh:
            self._check_claims()

    def _check_claims(self) -> None:
        claims = os.pread(self._map_file, self.count, 0)
        chunk = self.entry.chunk_bytes
        for index, claimed in enumerate(claims):
            if claimed:
                data = os.pread(self._part_file, self._expected(index), index * chunk)
                self._have[index] = hashlib.sha256(data).digest() == self.entry.chunk_sha256[index]
                if not self._have[index]:
                    log.warning("chunk %d of %s did not survive the restart", index, self.name[:12])

    def _expected(self, index: int) -> int:
        return min(self.entry.chunk_bytes, self.entry.size - index * self.entry.chunk_bytes)

    def accept(self, index: int, data: bytes) -> bool:
        """Take in one chunk from the wire.

        Returns:
            False if it was there already.

        Raises:
            WireError: An index or size out of bounds, or a digest that is not the manifest's; nothing is written.
            OSError: The disk is full; the chunk still counts as missing.
        """
        if not 0 <= index < self.count:
            raise WireError("chunk.index", expected=f"0 to {self.count - 1}", got=index)
        if len(data) != self._expected(index):
            raise WireError(f"chunk {index}.data", expected=f"{self._expected(index)} bytes", got=f"{len(data)} bytes")
        if self._have[index]:
            return False
        digest = hashlib.sha256(data).digest()
        if digest != self.entry.chunk_sha256[index]:
            expected = self.entry.chunk_sha256[index].hex()
            raise WireError(f"chunk {index}.data", expected=f"SHA-256 {expected}", got=digest.hex())
        if self._part_file < 0:
            raise OSError(errno.EBADF, "the download is not open", str(self._part))
        self._disk.write(self._part_file, data, index * self.entry.chunk_bytes)
        self._disk.write(self._map_file, b"\1", index)
        self._have[index] = 1
        return True

    def verify(self) -> bool:
        """Check the whole file and give it its final name; False, and everything removed, if it is not right.

        Raises:
            OSError: The disk failed; the file can be verified again.
        """
        if self.path.exists():
            if holds(self.path, self.entry):
                return True
            self.discard()
            return False
        if not self.complete or not holds(self._part, self.entry):
            self.discard()
            return False
        if self._part_file < 0:
            self._part_file = self._disk.create(self._part, truncate=False)
        self._disk.sync(self._part_file)
        self.close()
        self._disk.rename(self._part, self.path)
        self._disk.unlink(self._map)
        self._disk.sync_folder(self.path.parent)
        return True

    def adopt(self, source: Path) -> bool:
        """Use a file that is on this device already, if it is exactly the one wanted.

        Raises:
            OSError: The disk is full.
        """
        if self.path.exists() or not holds(source, self.entry):
            return False
        temporary = self.path.with_name(f"{self.name}.adopt")
        self._disk.unlink(temporary)
        self._disk.link_or_copy(source, temporary)
        self._disk.rename(temporary, self.path)
        self._disk.sync_folder(self.path.parent)
        return True

    def discard(self) -> None:
        """Remove everything of this file."""
        self.close()
        self._have = bytearray(self.count)
        for path in (self._map, self._part, self.path):
            self._disk.unlink(path)

    def close(self) -> None:
        """Close the descriptors; the chunks stay."""
        for descriptor in (self._part_file, self._map_file):
            if descriptor >= 0:
                os.close(descriptor)
        self._part_file = self._map_file = -1
