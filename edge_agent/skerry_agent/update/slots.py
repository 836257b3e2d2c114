"""Two slots and a pointer: what answers, and what answered before.

A slot is a folder with the files of one release at their bundle paths, and ``manifest.pb``, the signed envelope that
vouches for them. The pointer is one small file that is replaced by rename, so there is never half a switch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.files import DISK, Disk
from skerry_contract.errors import ContractError
from skerry_contract.manifest import parse_manifest
from skerry_contract.signing import RELEASE, EnvelopeVerifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_contract.wire import parse_message

SlotName = Literal["a", "b"]
MANIFEST = "manifest.pb"


@dataclass(frozen=True)
class Pointer:
    """What the pointer file says.

    Attributes:
        slot: The slot that answers.
        release_id: Release in it.
        committed: False while the release is on probation: a restart that finds it unhealthy goes back.
        previous_slot: Slot of the last committed release, to go back to; None if there is none.
        previous_release: Release in it; empty if there is none.
    """

    slot: SlotName
    release_id: str
    committed: bool
    previous_slot: SlotName | None = None
    previous_release: str = ""


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


def other_slot(slot: SlotName) -> SlotName:
    """The one that is not ``slot``."""
    return "b" if slot == "a" else "a"


def read_pointer(layout: AgentLayout) -> Pointer | None:
    """The pointer, or None on a device that never had a release.

    Raises:
        ArtifactError: The file is there but broken.
    """
    try:
        document = json.loads(layout.pointer.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError("", f"the slot pointer {layout.pointer} is broken: {error}") from error
    try:
        slot, previous = document["slot"], document["previous_slot"]
        if slot not in ("a", "b") or previous not in ("a", "b", None):
            raise ValueError(f"slots {slot!r} and {previous!r}")
        return Pointer(
            slot=cast("SlotName", slot),
            release_id=str(document["release_id"]),
            committed=bool(document["committed"]),
            previous_slot=cast("SlotName | None", previous),
            previous_release=str(document["previous_release"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError("", f"the slot pointer {layout.pointer} is broken: {error}") from error


def write_pointer(layout: AgentLayout, pointer: Pointer, disk: Disk = DISK) -> None:
    """Replace the pointer durably.

    Raises:
        OSError: It could not be written; the old one stands.
    """
    disk.make_folder(layout.slots)
    disk.write_atomically(layout.pointer, json.dumps(pointer.__dict__, sort_keys=True).encode())


def remove_pointer(layout: AgentLayout, disk: Disk = DISK) -> None:
    """Go back to a device without a release: its first one did not hold."""
    disk.unlink(layout.pointer)
    disk.sync_folder(layout.slots)


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
