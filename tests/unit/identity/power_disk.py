"""A disk whose power fails before a chosen system call, and which then forgets what was not flushed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from skerry_agent.files import Disk


class PowerCut(BaseException):
    """The process is gone; no handler of the code under test may see it."""


class PowerDisk(Disk):
    """Counts the system calls that change something.

    A write is cut in its middle. With ``forgets``, what was written without a flush of the file, and what was renamed
    or removed without a flush of the folder, is undone by the cut: the other extreme of what a file system may do.
    """

    def __init__(self, *, cut_at: int | None = None, forgets: bool = False) -> None:
        self.calls: list[str] = []
        self._cut_at = cut_at
        self._forgets = forgets
        self._undo: list[tuple[Path, Callable[[], None]]] = []

    def _tick(self, call: str, path: Path) -> None:
        self.calls.append(f"{call} {path.name}")
        if self._cut_at is not None and len(self.calls) > self._cut_at:
            if self._forgets:
                for _, undo in reversed(self._undo):
                    undo()
            raise PowerCut(self.calls[-1])

    def _remember(self, *paths: Path) -> None:
        for path in paths:
            before = path.read_bytes() if path.is_file() else None
            self._undo.append((path, partial(_put, path, before)))

    def create(self, path: Path, *, mode: int = 0o600, truncate: bool = True) -> int:
        self._tick("create", path)
        self._remember(path)
        return super().create(path, mode=mode, truncate=truncate)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        try:
            self._tick("write", _name(descriptor))
        except PowerCut:
            if not self._forgets:
                super().write(descriptor, data[: len(data) // 2], offset)
            raise
        path = _name(descriptor)
        self._undo.append((path, lambda: os.truncate(path, 0) if path.exists() else None))
        super().write(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        path = _name(descriptor)
        self._tick("sync", path)
        self._undo = [(where, undo) for where, undo in self._undo if where != path]

    def rename(self, source: Path, target: Path) -> None:
        self._tick("rename", target)
        self._remember(target, source)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._tick("unlink", path)
        self._remember(path)
        super().unlink(path)

    def create_folder(self, folder: Path) -> None:
        self._tick("create_folder", folder)
        super().create_folder(folder)

    def remove_folder(self, folder: Path) -> None:
        self._tick("remove_folder", folder)
        super().remove_folder(folder)

    def sync_folder(self, folder: Path) -> None:
        self._tick("sync_folder", folder)
        self._undo = [(where, undo) for where, undo in self._undo if where.parent != folder]


def _name(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _put(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(data)
