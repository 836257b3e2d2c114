"""The campaign machine: which state follows which, and when a state has lasted too long. Pure: no clock, no store.

A campaign trains one task on the devices of one cohort and ends with a candidate that the gates judge.

============ ============================================== ========================================================
state        success                                        failure
============ ============================================== ========================================================
approved     the controller saw it: recruiting              a person aborts: aborted; nothing to train with: failed
recruiting   enough devices accepted: running               too few until the deadline: failed; a person: aborted
running      the job delivered a model: gating              the job gave up, or the deadline: failed; a person: aborted
gating       the candidate passed its gates: finished       it was rejected, or the deadline: failed; a person: aborted
============ ============================================== ========================================================

``finished``, ``aborted`` and ``failed`` are final. Committed rounds are kept in all of them.

>>> next_state("recruiting", "start")
'running'
"""

from __future__ import annotations

from typing import Final

from skerry_server.state_table import IllegalEventError

APPROVED: Final = "approved"
RECRUITING: Final = "recruiting"
RUNNING: Final = "running"
GATING: Final = "gating"
FINISHED: Final = "finished"
ABORTED: Final = "aborted"
FAILED: Final = "failed"

#: {state: {event: next state}}.
TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    APPROVED: {"recruit": RECRUITING, "fail": FAILED, "abort": ABORTED},
    RECRUITING: {"start": RUNNING, "fail": FAILED, "abort": ABORTED},
    RUNNING: {"deliver": GATING, "fail": FAILED, "abort": ABORTED},
    GATING: {"pass": FINISHED, "fail": FAILED, "abort": ABORTED},
    FINISHED: {},
    ABORTED: {},
    FAILED: {},
}

#: States in which a campaign still does something.
ACTIVE: Final = frozenset(state for state, row in TRANSITIONS.items() if row)

#: What each state waits for, for people.
WAITS_FOR: Final[dict[str, str]] = {
    APPROVED: "the campaign controller",
    RECRUITING: "devices to accept the invitation",
    RUNNING: "the rounds to be trained",
    GATING: "the gates to judge the candidate",
}

#: How long the controller and the gates may take (milliseconds).
APPROVED_DEADLINE_MS: Final = 600_000
GATING_DEADLINE_MS: Final = 3_600_000
#: What a run may take beside its rounds: start, resumption after kills, evaluation on the devices (milliseconds).
RUN_OVERHEAD_MS: Final = 900_000


class IllegalCampaignEventError(IllegalEventError):
    """The event has no row in that state; nothing was changed."""

    subject = "a campaign"
    table = TRANSITIONS


def next_state(state: str, event: str) -> str:
    """State after ``event``.

    Raises:
        IllegalCampaignEventError: No such state, or the state does not take the event.
    """
    return IllegalCampaignEventError.next_state(state, event)


def deadline_ms(state: str, *, rounds: int, round_deadline_ms: int, recruiting_deadline_ms: int) -> int:
    """How long an active state may last (milliseconds), counted from when it was entered.

    Raises:
        ValueError: The state is final.
    """
    if state not in ACTIVE:
        raise ValueError(f"state {state!r} waits for nothing")
    return {
        APPROVED: APPROVED_DEADLINE_MS,
        RECRUITING: recruiting_deadline_ms,
        RUNNING: rounds * round_deadline_ms + RUN_OVERHEAD_MS,
        GATING: GATING_DEADLINE_MS,
    }[state]
