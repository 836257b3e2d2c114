"""A file made from one that is on this device already, instead of being downloaded whole.

The delta is a download like any other, by its own digest. When it is complete it is applied beside the file's final
name and renamed, so that a power cut costs the work and nothing else; base and result are checked by digest. Whatever
goes wrong with the delta itself is a :class:`DeltaError`: the file is then downloaded whole, which is always right.

Applying a large delta takes seconds, so it runs on a thread of its own that :meth:`Detour.halt` joins; its memory is a
few segments of the delta, whatever the size of the file.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk
from skerry_agent.update.download import FileDownload, hash_file
from skerry_contract.errors import WireError
from skerry_contract.v1.release_pb2 import DeltaEntry, FileEntry

if TYPE_CHECKING:
    from skerry_contract.delta_coding import Buffer

log = logging.getLogger(__name__)
#: Files up to this size are made at once (bytes): a slow device needs less than a tenth of a second for them.
INLINE_BYTES = 32 << 10
#: After so many refusals of a delta the file is downloaded whole.
REFUSALS = 3


class DeltaError(Exception):
    """A delta that does not lead to its file.

    Attributes:
        reason: Why not, for people.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class _Stopped(Exception):
    """Somebody asked to stop."""


@dataclass(frozen=True)
class Way:
    """A delta whose base is here: the delta, and where the base lies."""

    delta: DeltaEntry
    base: Path


def find_way(entry: FileEntry, layout: AgentLayout, *, avoid: Collection[bytes]) -> Way | None:
    """The smallest delta of a file whose base lies in a slot under the file's own path, checked by digest.

    Args:
        entry: From a checked manifest.
        layout: Data directory.
        avoid: Digests of deltas that are not to be used.
    """
    deltas = [delta for delta in entry.deltas if delta.sha256 not in avoid]
    if not deltas:
        return None
    bases: dict[bytes, Path] = {}
    for slot in ("a", "b"):
        path = layout.slots / slot / entry.path
        try:
            if path.is_file():
                bases.setdefault(hash_file(path), path)
        except OSError as error:
            log.warning("%s cannot be read, it is no base of a delta: %s", path, error)
    usable = [Way(delta, bases[delta.base_sha256]) for delta in deltas if delta.base_sha256 in bases]
    return min(usable, key=lambda way: way.delta.size, default=None)


class Detour:
    """Brings one file by a delta; every call from the control loop.

    Attributes:
        download: Of the delta.
        refusals: How often the server refused the delta.
    """

    def __init__(self, entry: FileEntry, way: Way, folder: Path, disk: Disk = DISK) -> None:
        """Nothing is touched before :attr:`download` is opened.

        Args:
            entry: The file that is wanted.
            way: How it is made.
            folder: Of the downloads; the file appears there under its digest.
            disk: File system.
        """
        delta = way.delta
        as_file = FileEntry(
            path=entry.path,
            size=delta.size,
            sha256=delta.sha256,
            chunk_bytes=delta.chunk_bytes,
            chunk_sha256=delta.chunk_sha256,
        )
        self.download = FileDownload(as_file, folder, disk)
        self.refusals = 0
        self._entry = entry
        self._base = way.base
        self._target = folder / entry.sha256.hex()
        self._disk = disk
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def needed_bytes(self) -> int:
        """Bytes that must still be written: the rest of the delta, and the file."""
        return self.download.missing_bytes() + self._entry.size

    def step(self) -> bool:
        """Make the file out of a complete delta; True once it has its final name.

        Raises:
            DeltaError: The delta is not what it should be; nothing of the file is there.
            OSError: The disk failed; the step can be repeated.
        """
        if self._thread is None:
            if not self.download.verify():
                raise DeltaError("the delta is not the file of the manifest")
            self._stop.clear()
            self._error = None
            if self._entry.size <= INLINE_BYTES:
                self._make()
                return True
            name = f"delta-{self._target.name[:12]}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        if self._thread.is_alive():
            return False
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return True

    def halt(self) -> None:
        """Stop making the file and join the thread; the next :meth:`step` begins it again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def discard(self) -> None:
        """Remove the delta."""
        self.halt()
        self.download.discard()

    def _run(self) -> None:
        try:
            self._make()
        except BaseException as error:
            # Whatever it is, the control loop is where it is dealt with.
            self._error = error

    def _make(self) -> None:
        temporary = self._target.with_name(f"{self._target.name}.applied")
        try:
            self._write(temporary)
        except (WireError, OSError, _Stopped) as error:
            # On a full disk the half that was written would stand in its own way.
            with contextlib.suppress(OSError):
                self._disk.unlink(temporary)
            if isinstance(error, WireError):
                raise DeltaError(str(error)) from error
            raise
        self._disk.rename(temporary, self._target)
        self._disk.sync_folder(self._target.parent)

    def _write(self, temporary: Path) -> None:
        # Late: it needs NumPy, which a device without deltas does not hold in this process.
        from skerry_contract.delta import pieces, read_header

        delta, base = _mapped(self.download.path), _mapped(self._base)
        header = read_header(delta)
        if (header.target_sha256, header.target_size) != (self._entry.sha256, self._entry.size):
            raise WireError("delta.target", expected=self._target.name, got=header.target_sha256.hex())
        descriptor = self._disk.create(temporary)
        try:
            offset = 0
            for piece in pieces(delta, base):
                if self._stop.is_set():
                    raise _Stopped
                self._disk.write(descriptor, piece, offset)
                offset += len(piece)
            self._disk.sync(descriptor)
        finally:
            os.close(descriptor)


def _mapped(path: Path) -> Buffer:
    """The bytes of a file that nobody changes, without reading them into memory."""
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return b""
        # Not closed here: it goes with the last view of it.
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
