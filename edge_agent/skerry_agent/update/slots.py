"""Two slots and a pointer: what answers, and what answered before.

A slot is a folder with the files of one release at their bundle paths, and ``manifest.pb``, the signed envelope that
vouches for them. Which slot answers says :mod:`skerry_agent.update.pointer`, whose names are here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.update.pointer import Pointer, SlotName, other_slot, read_pointer, remove_pointer, write_pointer
from skerry_contract.errors import ContractError
from skerry_contract.manifest import parse_manifest
from skerry_contract.signing import RELEASE, EnvelopeVerifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_contract.wire import parse_message

__all__ = [
    "MANIFEST",
    "Pointer",
    "SlotContent",
    "SlotName",
    "other_slot",
    "read_pointer",
    "read_slot",
    "remove_pointer",
    "slot_folder",
    "write_pointer",
]
MANIFEST = "manifest.pb"


@dataclass(frozen=True)
class SlotContent:
    """A slot whose manifest is signed by a trusted key. Its files were hashed when they were staged.

    Attributes:
        slot: "a" or "b".
        folder: Where the files lie.
        manifest: The verified manifest.
    """

    slot: SlotName
    folder: Path
    manifest: ReleaseManifest

    def path(self, name: str) -> Path:
        """Path of a file of the bundle; raises ArtifactError if the manifest does not have it."""
        if name not in {entry.path for entry in self.manifest.files}:
            raise ArtifactError(self.manifest.release_id, f"the bundle has no file {name}")
        return self.folder / name


def slot_folder(layout: AgentLayout, slot: SlotName) -> Path:
    """Folder of a slot."""
    return layout.slots / slot


def read_slot(layout: AgentLayout, slot: SlotName, verifier: EnvelopeVerifier) -> SlotContent:
    """Read and verify the manifest of a slot.

    Raises:
        ArtifactError: No manifest, or one that is not signed by a trusted key.
    """
    folder = slot_folder(layout, slot)
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactError("", f"slot {slot} has no readable manifest: {error.strerror}") from error
    try:
        envelope = parse_message(SignedEnvelope, data)
        manifest = parse_manifest(verifier.verify(RELEASE, envelope))
    except ContractError as error:
        raise ArtifactError("", f"slot {slot}: {error}") from error
    return SlotContent(slot, folder, manifest)
