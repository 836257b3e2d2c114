"""A file made from one that is on this device already, instead of being downloaded whole.

The delta is a download like any other, by its own digest. When it is complete it is applied beside the file's final
name and renamed, so that a power cut costs the work and nothing else; base and result are checked by digest. Whatever
goes wrong with the delta itself is a :class:`DeltaError`: the file is then downloaded whole, which is always right.

Applying a delta takes NumPy and, if it is large, seconds: a :class:`~skerry_agent.update.ports.DeltaApplier` does it,
on a device in a process of its own (:mod:`.applier`) that :meth:`Detour.halt` ends.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk
from skerry_agent.update.delta_work import DeltaError, DeltaWork
from skerry_agent.update.download import FileDownload, hash_file
from skerry_agent.update.ports import DeltaApplier
from skerry_contract.v1.release_pb2 import DeltaEntry, FileEntry

log = logging.getLogger(__name__)
#: After so many refusals of a delta the file is downloaded whole.
REFUSALS = 3


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

    def __init__(self, entry: FileEntry, way: Way, folder: Path, applier: DeltaApplier, disk: Disk = DISK) -> None:
        """Nothing is touched before :attr:`download` is opened.

        Args:
            entry: The file that is wanted.
            way: How it is made.
            folder: Of the downloads; the file appears there under its digest.
            applier: Makes it; nobody else uses it.
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
        self._target = folder / entry.sha256.hex()
        self._work = DeltaWork(
            delta=self.download.path,
            base=way.base,
            temporary=self._target.with_name(f"{self._target.name}.applied"),
            sha256=entry.sha256,
            size=entry.size,
        )
        self._applier = applier
        self._disk = disk
        self._making = False

    @property
    def making(self) -> bool:
        """Whether the file is being made."""
        return self._making

    def needed_bytes(self) -> int:
        """Bytes that must still be written: the rest of the delta, and the file."""
        return self.download.missing_bytes() + self._entry.size

    def step(self) -> bool:
        """Make the file out of a complete delta; True once it has its final name.

        Raises:
            DeltaError: The delta is not what it should be; nothing of the file is there.
            OSError: The disk failed; the step can be repeated.
        """
        if not self._making and not self.download.verify():
            raise DeltaError("the delta is not the file of the manifest")
        try:
            if not self._making:
                self._making = True
                self._applier.start(self._work)
            if not self._applier.poll():
                return False
        except (DeltaError, OSError):
            self.halt()
            raise
        self._making = False
        self._disk.rename(self._work.temporary, self._target)
        self._disk.sync_folder(self._target.parent)
        return True

    def halt(self) -> None:
        """Stop making the file; the next :meth:`step` begins it again."""
        if self._making:
            self._making = False
            self._applier.stop()
            # On a full disk the half that was written would stand in its own way.
            with contextlib.suppress(OSError):
                self._disk.unlink(self._work.temporary)

    def discard(self) -> None:
        """Remove the delta."""
        self.halt()
        self.download.discard()
