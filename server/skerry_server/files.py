"""Files that are whole after a power cut: written beside, flushed, renamed, and the folder flushed too.

And the lock that several processes take before they write the same place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from skerry_server.errors import PlatformError

_LOCK_POLL_S = 0.02


@contextlib.contextmanager
def exclusively(lock: Path, *, deadline_s: float) -> Iterator[None]:
    """Hold ``flock(2)`` on a file alone; the kernel gives the lock of a dead process back.

    Args:
        lock: Made if absent; its folder exists.
        deadline_s: Longest wait for another holder.

    Raises:
        PlatformError: Another process holds it for longer than the deadline.
        OSError: The file cannot be made.
    """
    until = time.monotonic() + deadline_s
    with lock.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise PlatformError(
                        f"another process has held {lock} for {deadline_s:.0f} s",
                        remedy="try again when it has ended",
                    ) from error
                time.sleep(_LOCK_POLL_S)
        yield


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file that must not exist yet and flush it; its folder is the caller's to flush.

    Raises:
        FileExistsError: It exists.
        OSError: The disk is full, or the folder cannot be written; no file is left.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data``, or leave it as it was. Several threads and processes may write the same path.

    Raises:
        OSError: The disk is full, or the folder cannot be written; ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.unlink(missing_ok=True)  # left by a killed process with the same identifiers
    write_new(temporary, data, mode=mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
