"""What a restart makes of what it finds. Pure."""

from __future__ import annotations

from skerry_agent.update.boots import Boots
from skerry_agent.update.desired import Instruction
from skerry_agent.update.journal import Journal
from skerry_agent.update.pointer import Pointer
from skerry_agent.update.states import Outcome
from skerry_agent.update.update_machine import RESUMES, SWITCHED, Event, State


def after_restart(
    journal: Journal, target: Instruction | None, pointer: Pointer | None, boots: Boots
) -> Outcome | None:
    """Whether an update that a restart found unfinished ends here; None if it goes on.

    Args:
        journal: In a state that is not settled.
        target: What it was working on; None if that cannot be read any more.
        pointer: The slot pointer.
        boots: Starts of the agent while a release was on probation.
    """
    if target is None:
        return Outcome(Event.ROLL_BACK, "the release of the journal cannot be read")
    there = pointer is not None and pointer.release_id == target.release_id
    if there and pointer is not None and pointer.committed:
        # On probation only the end is left to be written down; elsewhere the switch will find nothing to do.
        return None
    if journal.state in SWITCHED and boots.gave_up(target.release_id):
        return Outcome(Event.ROLL_BACK, f"the agent was started {boots.starts} times on its probation", counts=True)
    if journal.state is State.PROBATION and not there:
        return Outcome(Event.ROLL_BACK, "found rolled back after a restart", counts=True)
    limit = RESUMES.get(journal.state)
    if limit is not None and journal.resumes >= limit:
        why = f"the process died {limit} times in {journal.state.value}"
        return Outcome(Event.ROLL_BACK, why, counts=True)
    return None
