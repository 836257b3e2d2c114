"""Files that are whole after a power cut: written beside, flushed, renamed, and the folder flushed too.

Every change that the update machine makes on disk goes through a :class:`Disk`, one small method per system call, so
that a test can cut the power at each of them. :data:`DISK` is the real one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

#: Bytes that a copy or a hash reads at once.
BLOCK_BYTES = 1 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})


class Disk:
    """System calls that change a file system, and what is composed of them."""

    def create(self, path: Path, *, mode: int = 0o600, truncate: bool = True) -> int:
        """Open ``path`` for reading and writing, made if it is not there; returns a descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0), mode)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``.

        Raises:
            OSError: ENOSPC and the like; some of the data may be there.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, descriptor: int, size: int) -> None:
        """Give a file its size without taking space for it."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Make the content of a file durable."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Replace ``target`` by ``source`` in one step."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Make renames and links in ``folder`` durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Make ``target`` a second name of the file ``source``."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is no error."""
        path.unlink(missing_ok=True)

    def create_folder(self, folder: Path) -> None:
        """Make one folder; one that is there is no error."""
        folder.mkdir(exist_ok=True)

    def remove_folder(self, folder: Path) -> None:
        """Remove an empty folder."""
        folder.rmdir()

    def free_bytes(self, folder: Path) -> int:
        """Bytes that this process may still write to the file system of ``folder``."""
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, durably: what is later flushed inside could else go with its folder."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            self.create_folder(path)
            self.sync_folder(path.parent)

    def write_atomically(self, path: Path, data: bytes, *, mode: int = 0o600) -> None:
        """Replace ``path`` by ``data``, or leave it as it was.

        Raises:
            OSError: The disk is full, or the folder cannot be written; ``path`` is unchanged.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            descriptor = self.create(temporary, mode=mode)
            try:
                self.write(descriptor, data, 0)
                self.sync(descriptor)
            finally:
                os.close(descriptor)
            self.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self.sync_folder(path.parent)

    def link_or_copy(self, source: Path, target: Path) -> None:
        """Give ``target`` the content of ``source``, by a hard link where the file system has them.

        Raises:
            OSError: The disk is full; ``target`` may be there in part.
        """
        try:
            self.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.copy(source, target)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file and flush it."""
        with source.open("rb") as stream:
            descriptor = self.create(target)
            try:
                offset = 0
                while block := stream.read(BLOCK_BYTES):
                    self.write(descriptor, block, offset)
                    offset += len(block)
                self.sync(descriptor)
            finally:
                os.close(descriptor)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder with everything in it; one that is not there is no error."""
        if not folder.exists():
            return
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                self.remove_folder(path)
            else:
                self.unlink(path)
        self.remove_folder(folder)


#: The file system of this machine.
DISK = Disk()


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    DISK.sync_folder(folder)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data``, or leave it as it was; see :meth:`Disk.write_atomically`."""
    DISK.write_atomically(path, data, mode=mode)


def remove_leftovers(folder: Path, disk: Disk = DISK) -> None:
    """Remove temporary files of atomic writes that a power cut left in ``folder``.

    Only for a folder with one writing process: another writer's temporary file would go too.
    """
    for path in folder.glob(".*.tmp"):
        disk.unlink(path)


def rotate(path: Path, *, limit: int) -> None:
    """Keep a growing log below ``limit`` bytes: its content moves to ``<name>.1``, the open file is emptied."""
    try:
        if path.stat().st_size <= limit:
            return
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return
