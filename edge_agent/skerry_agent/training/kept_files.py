"""Small stores of training: files that are whole or not used.

A kept file is its own digest (BLAKE2b, 32 bytes) and the content. Writing replaces the file in one durable step; a file
that is torn, rotten, cut short or too large is removed when it is read, and the reader hears of it as of no file.

A folder of None keeps the content in memory: simulated devices have no disk.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from pathlib import Path

from skerry_agent.files import DISK, Disk, remove_leftovers

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32


def read_kept(path: Path, *, limit: int) -> bytes:
    """The content of a kept file, for a process that does not own it: nothing is changed.

    Raises:
        OSError: It cannot be read; FileNotFoundError if there is none.
        ValueError: It is torn, rotten, or larger than ``limit``.
    """
    if path.stat().st_size > limit + _DIGEST_BYTES:
        raise ValueError(f"more than {limit} bytes")
    data = path.read_bytes()
    content = data[_DIGEST_BYTES:]
    if hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest() != data[:_DIGEST_BYTES]:
        raise ValueError("its digest is another")
    return content


class KeptFiles:
    """Named contents in one folder; used by one thread of one process.

    Args:
        folder: Made with the first write; None: memory only.
        limit: Largest content that is read or written (bytes).
        reserve: Free space that writing leaves alone (bytes).
        disk: What changes the file system.
    """

    def __init__(self, folder: Path | None, *, limit: int, reserve: int = 0, disk: Disk = DISK) -> None:
        self._folder = folder
        self._limit = limit
        self._reserve = reserve
        self._disk = disk
        self._memory: dict[str, bytes] = {}
        if folder is not None and folder.is_dir():
            remove_leftovers(folder, disk)

    def names(self) -> list[str]:
        """What there is, oldest write first."""
        if self._folder is None:
            return list(self._memory)
        found: list[tuple[int, str]] = []
        for path in self._folder.glob("*.kept") if self._folder.is_dir() else ():
            try:
                found.append((path.stat().st_mtime_ns, path.name.removesuffix(".kept")))
            except OSError:
                continue
        return [name for _, name in sorted(found)]

    def size(self, name: str) -> int:
        """Bytes that a content takes; 0 if there is none."""
        if self._folder is None:
            return len(self._memory.get(name, b""))
        try:
            return self._path(name).stat().st_size
        except OSError:
            return 0

    def digest(self, name: str) -> bytes:
        """Digest (32 bytes) that a content was written with, read without it; empty if there is none."""
        if self._folder is None:
            content = self._memory.get(name)
            return b"" if content is None else hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
        try:
            with self._path(name).open("rb") as file:
                return file.read(_DIGEST_BYTES)
        except OSError:
            return b""

    def age_s(self, name: str, now_s: float) -> float:
        """Seconds since the write, by the wall clock ``now_s``; never negative. 0 in memory."""
        if self._folder is None:
            return 0.0
        try:
            return max(0.0, now_s - self._path(name).stat().st_mtime)
        except OSError:
            return 0.0

    def read(self, name: str) -> bytes | None:
        """The content; None if there is none that can be used, and then nothing is left of it."""
        if self._folder is None:
            return self._memory.get(name)
        path = self._path(name)
        try:
            return read_kept(path, limit=self._limit)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s is dropped: %s", path, error)
            self.remove(name)
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a content.

        Raises:
            OSError: The disk is full, as far as training may fill it, or broken, or the content is too large; what was
                there before is still there.
        """
        if len(content) > self._limit:
            raise OSError(f"{name}: {len(content)} bytes are more than {self._limit}")
        if self._folder is None:
            self._memory.pop(name, None)
            self._memory[name] = content
            return
        self._disk.make_folder(self._folder)
        if self._disk.free_bytes(self._folder) < len(content) + self._reserve:
            raise OSError(errno.ENOSPC, f"{len(content)} bytes and a reserve of {self._reserve} are not free")
        digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
        self._disk.write_atomically(self._path(name), digest + content)

    def remove(self, name: str) -> None:
        """Forget a content; one that is not there is no error, and one that cannot be removed is only logged."""
        self._memory.pop(name, None)
        if self._folder is None:
            return
        try:
            self._disk.unlink(self._path(name))
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self._path(name), error)

    def clear(self) -> None:
        """Forget everything, and the folder."""
        for name in self.names():
            self.remove(name)
        if self._folder is not None and self._folder.is_dir():
            try:
                self._disk.remove_tree(self._folder)
            except OSError as error:
                logger.warning("%s cannot be removed: %s", self._folder, error)

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise ValueError("there is no folder")
        return self._folder / f"{name}.kept"
