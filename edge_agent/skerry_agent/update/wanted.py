"""How much of a release this device still lacks: bytes to download and bytes of space, before anything is fetched.

An estimate from the signed manifests of the slots and the sizes of files: nothing is hashed. The download looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.update.pointer import SlotName
from skerry_agent.update.slots import read_slot
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.release_pb2 import FileEntry

_BLOCK = 512
_SLOTS: tuple[SlotName, SlotName] = ("a", "b")


@dataclass(frozen=True)
class Wanted:
    """Bytes that an update still takes.

    Attributes:
        transfer: To download.
        space: To write.
    """

    transfer: int
    space: int


def wanted(layout: AgentLayout, entries: Sequence[FileEntry], verifier: EnvelopeVerifier, *, downloads: Path) -> Wanted:
    """Look at what is here.

    Args:
        layout: Data directory.
        entries: Files that are wanted.
        verifier: Trusted release keys.
        downloads: Folder of the files that are on their way, named by digest.
    """
    held = _held(layout, verifier)
    files = {entry.sha256: entry for entry in entries}
    parts = [_of_file(entry, held, downloads) for digest, entry in files.items() if digest not in held]
    return Wanted(sum(part.transfer for part in parts), sum(part.space for part in parts))


def _held(layout: AgentLayout, verifier: EnvelopeVerifier) -> set[bytes]:
    digests: set[bytes] = set()
    for slot in _SLOTS:
        try:
            content = read_slot(layout, slot, verifier)
        except ArtifactError:
            continue
        # A slot may be without forms that the device did not need.
        files = content.manifest.files
        digests.update(entry.sha256 for entry in files if (content.folder / entry.path).exists())
    return digests


def _of_file(entry: FileEntry, held: AbstractSet[bytes], downloads: Path) -> Wanted:
    whole = entry.size - _there(downloads, entry.sha256, entry.size)
    deltas = [
        delta.size - _there(downloads, delta.sha256, delta.size) for delta in entry.deltas if delta.base_sha256 in held
    ]
    if whole and deltas and min(deltas) < whole:
        return Wanted(min(deltas), whole + min(deltas))
    return Wanted(whole, whole)


def _there(downloads: Path, digest: bytes, size: int) -> int:
    """Bytes of a download that take space already."""
    if (downloads / digest.hex()).exists():
        return size
    try:
        blocks = (downloads / f"{digest.hex()}.part").stat().st_blocks
        # What is not finished lacks something, however its blocks round.
        return min(max(0, size - 1), blocks * _BLOCK)
    except OSError:
        return 0
