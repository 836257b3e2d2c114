"""Where blobs lie: a local folder, or any file system that fsspec knows.

Both backends promise: a name appears with its complete content or not at all, also when the writer is killed.
On a local folder that is a flushed temporary file and a rename; on an object store it is the upload itself, which
becomes visible when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from skerry_server.errors import PlatformError
from skerry_server.files import sync_folder


@contextlib.contextmanager
def locked_file(path: Path, operation: int) -> Iterator[None]:
    """Hold ``flock(2)`` on a file; the kernel gives the lock of a dead process back.

    Args:
        path: Made if absent.
        operation: ``fcntl.LOCK_SH`` or ``LOCK_EX``, with ``LOCK_NB`` to raise BlockingIOError instead of waiting.
    """
    with path.open("a") as stream:
        fcntl.flock(stream, operation)
        yield


class Scratch:
    """A folder for unfinished files, emptied of what killed processes left.

    Writers hold a shared lock on the folder while they write; whoever gets the lock alone may throw everything away.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        """A fresh path, not created; whatever lies there at the end of the block is removed."""
        with locked_file(self._folder / "lock", fcntl.LOCK_SH):
            path = self._folder / secrets.token_hex(12)
            try:
                yield path
            finally:
                _remove(path)

    def sweep(self) -> int:
        """Remove what dead writers left, unless somebody is writing; returns how many entries."""
        try:
            with locked_file(self._folder / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                leftovers = [path for path in self._folder.iterdir() if path.name != "lock"]
                for path in leftovers:
                    _remove(path)
                return len(leftovers)
        except BlockingIOError:
            return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class BlobBackend(Protocol):
    """Keeps whole blobs by name (``ab/abcdef…``).

    Attributes:
        scratch: Where whoever stores a blob writes it first.
    """

    scratch: Scratch

    def local_path(self, name: str) -> Path | None:
        """Path of a blob that this machine can open by itself; None if it is elsewhere."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the blob is there."""
        ...

    def store(self, name: str, source: Path) -> None:
        """Keep the content of ``source``, a flushed file of :attr:`scratch`; replaces what was there.

        The file may be gone afterwards.
        """
        ...

    def fetch(self, name: str, target: Path) -> None:
        """Write the blob to ``target``; raises FileNotFoundError."""
        ...


class LocalBlobs:
    """Blobs in a folder of this machine."""

    def __init__(self, root: Path, scratch: Scratch) -> None:
        self._root = root
        self.scratch = scratch

    def local_path(self, name: str) -> Path:
        """See :class:`BlobBackend`."""
        return self._root / name

    def exists(self, name: str) -> bool:
        """See :class:`BlobBackend`."""
        return (self._root / name).is_file()

    def store(self, name: str, source: Path) -> None:
        """See :class:`BlobBackend`."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        sync_folder(target.parent)
        sync_folder(self._root)

    def fetch(self, name: str, target: Path) -> None:
        """See :class:`BlobBackend`."""
        copy_flushed(self._root / name, target)


class RemoteBlobs:
    """Blobs behind an fsspec file system whose uploads are atomic (S3, GCS, Azure, memory)."""

    def __init__(self, filesystem: Any, root: str, scratch: Scratch) -> None:
        self.scratch = scratch
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def local_path(self, name: str) -> None:
        """See :class:`BlobBackend`."""
        return

    def exists(self, name: str) -> bool:
        """See :class:`BlobBackend`."""
        return bool(self._filesystem.exists(f"{self._root}/{name}"))

    def store(self, name: str, source: Path) -> None:
        """See :class:`BlobBackend`."""
        target = f"{self._root}/{name}"
        self._filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._filesystem.put_file(str(source), target)

    def fetch(self, name: str, target: Path) -> None:
        """See :class:`BlobBackend`."""
        self._filesystem.get_file(f"{self._root}/{name}", str(target))


def copy_flushed(source: Path, target: Path) -> None:
    """Copy a file to a path that does not exist and flush it to the disk."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def open_backend(url: str, local: Path) -> BlobBackend:
    """The backend for an fsspec URL.

    Args:
        url: ``file:///srv/artifacts``, ``s3://bucket/prefix``, ...
        local: Folder of this machine for unfinished uploads.

    Raises:
        PlatformError: fsspec does not know the protocol, or its package is not installed.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise PlatformError(
            f"artifact store {url!r}: {error}", remedy="correct artifacts_url, or install the package it names"
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        # Beside the blobs, so that a rename stays within one file system.
        return LocalBlobs(Path(root) / "blobs", Scratch(Path(root) / "scratch"))
    return RemoteBlobs(filesystem, f"{root}/blobs", Scratch(local / "scratch"))
