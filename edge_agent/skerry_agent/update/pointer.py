"""The slot pointer: one small file that is replaced by rename, so that there is never half a switch.

Nothing heavy is imported: the supervisor reads it before it starts a process.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Literal, cast

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.files import DISK, Disk

log = logging.getLogger(__name__)
SlotName = Literal["a", "b"]


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


def go_back(layout: AgentLayout, pointer: Pointer, disk: Disk = DISK) -> None:
    """Point to the release before ``pointer``'s, which is not committed; to none if there is none.

    Raises:
        OSError: It could not be written; ``pointer`` stands.
    """
    if pointer.previous_slot is None:
        log.warning("release %s goes, and there is none before it", pointer.release_id)
        remove_pointer(layout, disk)
        return
    log.warning("release %s goes back to %s", pointer.release_id, pointer.previous_release)
    write_pointer(layout, Pointer(pointer.previous_slot, pointer.previous_release, committed=True), disk)
