"""Builds the slot that does not answer out of verified files.

The slot is made beside its final name and renamed as a whole, manifest included. Before the old content of the slot
goes, the pointer forgets that one could go back to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk
from skerry_agent.update.slots import (
    MANIFEST,
    Pointer,
    SlotName,
    other_slot,
    read_pointer,
    slot_folder,
    write_pointer,
)
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import FileEntry


def inactive_slot(pointer: Pointer | None) -> SlotName:
    """The slot that an update may overwrite."""
    return "a" if pointer is None else other_slot(pointer.slot)


def stage(
    layout: AgentLayout,
    envelope: SignedEnvelope,
    entries: Sequence[FileEntry],
    source: Callable[[bytes], Path],
    disk: Disk = DISK,
) -> SlotName:
    """Fill the inactive slot.

    Args:
        layout: Data directory.
        envelope: Signed envelope of the release's manifest, verified; the slot holds it whole.
        entries: Files of that manifest that the slot will hold.
        source: Verified file of a SHA-256 digest.
        disk: File system.

    Returns:
        The slot that was filled.

    Raises:
        OSError: The disk is full or broken; the slot that answers is untouched, and staging can be repeated.
    """
    pointer = read_pointer(layout)
    slot = inactive_slot(pointer)
    folder = slot_folder(layout, slot)
    building = folder.with_name(f"{slot}.building")
    disk.remove_tree(building)
    disk.make_folder(building)
    folders = {building}
    for entry in entries:
        target = building / entry.path
        for parent in target.relative_to(building).parents:
            disk.make_folder(building / parent)
            folders.add(building / parent)
        disk.link_or_copy(source(entry.sha256), target)
    descriptor = disk.create(building / MANIFEST)
    try:
        disk.write(descriptor, envelope.SerializeToString(), 0)
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
    for parent in sorted(folders, reverse=True):
        disk.sync_folder(parent)
    if pointer is not None and pointer.previous_slot is not None:
        write_pointer(layout, replace(pointer, previous_slot=None, previous_release=""), disk)
    disk.remove_tree(folder)
    disk.rename(building, folder)
    disk.sync_folder(layout.slots)
    return slot
