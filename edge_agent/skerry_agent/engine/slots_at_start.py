"""Which slots an engine tries when it opens, and in which order."""

from __future__ import annotations

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.update.slots import Pointer, SlotName, other_slot, read_pointer, read_slot
from skerry_contract.signing import EnvelopeVerifier


def slots_to_try(
    layout: AgentLayout, verifier: EnvelopeVerifier, reasons: list[str]
) -> tuple[Pointer | None, list[SlotName]]:
    """The pointer, and its slot before the previous one. A broken pointer leaves the newest release that verifies.

    Args:
        layout: The data directory.
        verifier: Whose signatures are trusted.
        reasons: Takes what is wrong with the pointer.
    """
    try:
        pointer = read_pointer(layout)
    except ArtifactError as error:
        reasons.append(error.reason)
        return None, _slots_by_sequence(layout, verifier)
    if pointer is None:
        return None, []
    previous = pointer.previous_slot
    slots = [pointer.slot] if previous in (None, pointer.slot) else [pointer.slot, other_slot(pointer.slot)]
    return pointer, slots


def _slots_by_sequence(layout: AgentLayout, verifier: EnvelopeVerifier) -> list[SlotName]:
    sequences: dict[SlotName, int] = {}
    for slot in ("a", "b"):
        try:
            sequences[slot] = read_slot(layout, slot, verifier).manifest.sequence
        except ArtifactError:
            continue
    return sorted(sequences, key=lambda slot: -sequences[slot])
