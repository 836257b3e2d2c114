"""A disk that keeps, beside the real files, what a power cut would leave of them at every system call.

The model: a file's content is durable after its ``fsync``, a folder's names after the ``fsync`` of the folder (POSIX
promises no more; that a rename inside a folder is one change, every file system does). At each call the power may go
before it, or in the middle of a write. What was not flushed may or may not have reached the disk: every change of names
on its own, and the unflushed contents all or none. Each combination is an :data:`Image`. Images that are equal are kept
once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skerry_agent.files import Disk

#: Path below the root: content and a number that is the same for hard links of one file; None for a folder.
Image = dict[str, tuple[bytes, int] | None]
#: So many unflushed changes of names are combined freely; of more, every beginning, each alone, and all but each.
FREE = 3


@dataclass(eq=False)
class File:
    live: bytes = b""
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    live: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    #: Changes since ``durable``, in their order: what a name stands for after each; None: nothing.
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, File | Folder | None]) -> None:
        self.changes.append(names)
        _apply(self.live, names)

    def flush(self) -> None:
        self.durable, self.changes = dict(self.live), []


@dataclass(frozen=True)
class Cut:
    """A power cut.

    Attributes:
        call: Number of the system call at which it happened, from 0.
        what: The call.
        image: What was left.
    """

    call: int
    what: str
    image: Image


class CachedDisk(Disk):
    """Records what a power cut at each call would leave of ``root``, a folder that is durable at the start."""

    def __init__(self, root: Path, *, inspect: Callable[[Cut], None] = lambda cut: None) -> None:
        """``inspect`` sees every cut, those with an image that was seen before included."""
        self.root = root
        self._inspect = inspect
        self.calls: list[str] = []
        self.points = 0
        self.states = 0
        self.cuts: list[Cut] = []
        self._seen: set[frozenset[tuple[str, tuple[bytes, int] | None]]] = set()
        self._open: dict[int, File] = {}
        self._inodes: dict[int, File] = {}
        self._tree = self._load(root)

    def _load(self, path: Path) -> Folder:
        folder = Folder()
        for child in path.iterdir() if path.is_dir() else ():
            if child.is_dir():
                folder.live[child.name] = self._load(child)
            else:
                data = child.read_bytes()
                folder.live[child.name] = self._inodes.setdefault(child.stat().st_ino, File(data, data))
        folder.durable = dict(folder.live)
        return folder

    # The calls: each records, acts, and follows in the model.

    def create(self, path: Path, *, mode: int = 0o600, truncate: bool = True) -> int:
        self._cut("create", path)
        descriptor = super().create(path, mode=mode, truncate=truncate)
        folder = self._parent(path)
        if path.name not in folder.live:
            folder.change({path.name: File()})
        node = folder.live[path.name]
        assert isinstance(node, File)
        if truncate:
            node.live = b""
        self._open[descriptor] = node
        return descriptor

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        self._cut("write")
        node = self._open[descriptor]
        before = node.live
        node.live = _put(before, data[: len(data) // 2], offset)
        self._record("torn write")
        super().write(descriptor, data, offset)
        node.live = _put(before, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._cut("truncate")
        super().truncate(descriptor, size)
        node = self._open[descriptor]
        node.live = node.live[:size].ljust(size, b"\0")

    def sync(self, descriptor: int) -> None:
        # Nothing is flushed for real: what would be lost is in the model.
        self._cut("sync")
        node = self._open[descriptor]
        node.durable = node.live

    def rename(self, source: Path, target: Path) -> None:
        self._cut("rename", target)
        super().rename(source, target)
        here, there = self._parent(source), self._parent(target)
        node = here.live[source.name]
        if here is there:
            here.change({source.name: None, target.name: node})
        else:
            there.change({target.name: node})
            here.change({source.name: None})

    def sync_folder(self, folder: Path) -> None:
        self._cut("sync_folder", folder)
        self._find(folder).flush()

    def link(self, source: Path, target: Path) -> None:
        self._cut("link", target)
        super().link(source, target)
        self._parent(target).change({target.name: self._parent(source).live[source.name]})

    def unlink(self, path: Path) -> None:
        self._cut("unlink", path)
        super().unlink(path)
        if path.name in self._parent(path).live:
            self._parent(path).change({path.name: None})

    def create_folder(self, folder: Path) -> None:
        self._cut("create_folder", folder)
        super().create_folder(folder)
        if folder.name not in self._parent(folder).live:
            self._parent(folder).change({folder.name: Folder()})

    def remove_folder(self, folder: Path) -> None:
        self._cut("remove_folder", folder)
        super().remove_folder(folder)
        self._parent(folder).change({folder.name: None})

    def free_bytes(self, folder: Path) -> int:
        return 1 << 40

    # The model.

    def finish(self) -> None:
        """The power may also go after the last call."""
        self._record("end")

    def check_model(self) -> None:
        """The model's live tree is what really is on disk: a change that went past the disk would show."""
        real = {
            path.relative_to(self.root).as_posix(): None if path.is_dir() else path.read_bytes()
            for path in self.root.rglob("*")
        }
        model = self._image({}, live_data=True, live_names=True)
        assert {name: None if entry is None else entry[0] for name, entry in model.items()} == real

    def _cut(self, call: str, path: Path | None = None) -> None:
        self.calls.append(call if path is None else f"{call} {path.relative_to(self.root)}")
        self._record(self.calls[-1])

    def _record(self, what: str) -> None:
        self.points += 1
        folders = list(self._folders(self._tree, set()))
        pending = [(folder, change) for folder in folders for change in folder.changes]
        files = [node for folder in folders for node in _files(folder)]
        contents = (True, False) if any(node.live != node.durable for node in files) else (True,)
        for reached, live_data in itertools.product(_choices(pending), contents):
            names: dict[int, dict[str, File | Folder]] = {}
            for folder, change in reached:
                _apply(names.setdefault(id(folder), dict(folder.durable)), change)
            image = self._image(names, live_data=live_data)
            self.states += 1
            cut = Cut(max(0, len(self.calls) - 1), what, image)
            self._inspect(cut)
            key = frozenset(image.items())
            if key not in self._seen:
                self._seen.add(key)
                self.cuts.append(cut)

    def _image(
        self, reached: dict[int, dict[str, File | Folder]], *, live_data: bool, live_names: bool = False
    ) -> Image:
        """``reached``: names of the folders (by id) of which unflushed changes reached the disk."""
        image: Image = {}
        numbers: dict[int, int] = {}

        def walk(folder: Folder, prefix: str) -> None:
            names = folder.live if live_names else reached.get(id(folder), folder.durable)
            for name, node in sorted(names.items()):
                path = f"{prefix}{name}"
                if isinstance(node, Folder):
                    image[path] = None
                    walk(node, f"{path}/")
                else:
                    data = node.live if live_data else node.durable
                    image[path] = (data, numbers.setdefault(id(node), len(numbers)))

        walk(self._tree, "")
        return image

    def _folders(self, folder: Folder, found: set[int]) -> Iterator[Folder]:
        if id(folder) in found:
            return
        found.add(id(folder))
        yield folder
        for node in (*folder.live.values(), *folder.durable.values()):
            if isinstance(node, Folder):
                yield from self._folders(node, found)

    def _find(self, path: Path) -> Folder:
        folder = self._tree
        for name in path.relative_to(self.root).parts:
            node = folder.live[name]
            assert isinstance(node, Folder)
            folder = node
        return folder

    def _parent(self, path: Path) -> Folder:
        return self._find(path.parent)


def _put(content: bytes, data: bytes, offset: int) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _files(folder: Folder) -> list[File]:
    return [node for names in (folder.live, folder.durable) for node in names.values() if isinstance(node, File)]


#: A folder, and a change of its names.
Change = tuple[Folder, dict[str, File | Folder | None]]


def _apply(names: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _choices(pending: list[Change]) -> list[list[Change]]:
    if len(pending) <= FREE:
        sizes = range(len(pending) + 1)
        return [list(chosen) for size in sizes for chosen in itertools.combinations(pending, size)]
    beginnings = [pending[:size] for size in range(len(pending) + 1)]
    return [
        *beginnings,
        *([one] for one in pending),
        *(pending[:index] + pending[index + 1 :] for index in range(len(pending))),
    ]


def materialise(image: Image, root: Path) -> None:
    """Lay an image out as files in the empty folder ``root``, hard links included."""
    first: dict[int, Path] = {}
    for name, entry in image.items():
        path = root / name
        if entry is None:
            path.mkdir()
        elif entry[1] in first:
            os.link(first[entry[1]], path)
        else:
            path.write_bytes(entry[0])
            first[entry[1]] = path
