"""A disk that fails when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skerry_agent.files import Disk


class TestDisk(Disk):
    """Counts system calls that change something, and fails those that it is told to."""

    __test__ = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.free = 1 << 40
        self.fail: Callable[[str, Path | None], OSError | None] = lambda call, path: None

    def _tick(self, call: str, path: Path | None = None) -> None:
        self.calls.append(call)
        error = self.fail(call, path)
        if error is not None:
            raise error

    def create(self, path: Path, *, mode: int = 0o600, truncate: bool = True) -> int:
        self._tick("create", path)
        return super().create(path, mode=mode, truncate=truncate)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        self._tick("write", Path(f"/proc/self/fd/{descriptor}").readlink())
        super().write(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._tick("truncate", Path(f"/proc/self/fd/{descriptor}").readlink())
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._tick("sync", Path(f"/proc/self/fd/{descriptor}").readlink())

    def rename(self, source: Path, target: Path) -> None:
        self._tick("rename", target)
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._tick("sync_folder", folder)

    def link(self, source: Path, target: Path) -> None:
        self._tick("link", target)
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._tick("unlink", path)
        super().unlink(path)

    def create_folder(self, folder: Path) -> None:
        self._tick("create_folder", folder)
        super().create_folder(folder)

    def remove_folder(self, folder: Path) -> None:
        self._tick("remove_folder", folder)
        super().remove_folder(folder)

    def free_bytes(self, folder: Path) -> int:
        return self.free
