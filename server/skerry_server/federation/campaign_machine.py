"""The campaign machine: which state follows which, and when a state has lasted too long. Pure: no clock, no store.

A campaign trains one task on the devices of one cohort and ends with a candidate that the gates judge.

============ ============================================== ========================================================
state        success                                        failure
============ ============================================== ========================================================
draft        a person approves: approved                    a person aborts: aborted; nobody approves: failed
approved     the controller saw it: recruiting              a person aborts: aborted; nothing to train with: failed
recruiting   enough devices accepted: running               too few until the deadline: failed; a person: aborted
running      the job delivered a model: gating              the job gave up, or the deadline: failed; a person: aborted
gating       the candidate passed its gates: finished       it was rejected, or the deadline: failed; a person: aborted
paused       a person resumes: back where it was            a person aborts: aborted; nobody resumes: failed
============ ============================================== ========================================================

``finished``, ``aborted`` and ``failed`` are final. Committed rounds are kept in all of them. A person may pause what is
approved, recruiting or running; the job of a running campaign ends between two looks at the state, the updates that it
had stay journalled, and the job that is started at the resumption goes on behind them. Gating is not paused: the gates
are machines that nobody waits for.

While a campaign is running each round goes through the phases of :data:`PHASES`. A phase is progress, not state: the
job tells it, and it may be lost; what counts is the committed round.

>>> next_state("recruiting", "start")
'running'
>>> next_state("paused", resume_event("running"))
'running'
"""

from __future__ import annotations

from typing import Final

from skerry_server.state_table import IllegalEventError

DRAFT: Final = "draft"
APPROVED: Final = "approved"
RECRUITING: Final = "recruiting"
RUNNING: Final = "running"
GATING: Final = "gating"
PAUSED: Final = "paused"
FINISHED: Final = "finished"
ABORTED: Final = "aborted"
FAILED: Final = "failed"

#: {state: {event: next state}}.
TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    DRAFT: {"approve": APPROVED, "fail": FAILED, "abort": ABORTED},
    APPROVED: {"recruit": RECRUITING, "pause": PAUSED, "fail": FAILED, "abort": ABORTED},
    RECRUITING: {"start": RUNNING, "pause": PAUSED, "fail": FAILED, "abort": ABORTED},
    RUNNING: {"deliver": GATING, "pause": PAUSED, "fail": FAILED, "abort": ABORTED},
    GATING: {"pass": FINISHED, "fail": FAILED, "abort": ABORTED},
    PAUSED: {
        "resume-approved": APPROVED,
        "resume-recruiting": RECRUITING,
        "resume-running": RUNNING,
        "fail": FAILED,
        "abort": ABORTED,
    },
    FINISHED: {},
    ABORTED: {},
    FAILED: {},
}

#: States in which a campaign has not ended.
ACTIVE: Final = frozenset(state for state, row in TRANSITIONS.items() if row)
#: States in which a campaign occupies its task; a draft does not.
UNDER_WAY: Final = ACTIVE - {DRAFT}
#: States that a person may pause.
PAUSABLE: Final = frozenset(state for state, row in TRANSITIONS.items() if "pause" in row)

#: What each state waits for, for people.
WAITS_FOR: Final[dict[str, str]] = {
    DRAFT: "a person to approve it",
    APPROVED: "the campaign controller",
    RECRUITING: "devices to accept the invitation",
    RUNNING: "the rounds to be trained",
    GATING: "the gates to judge the candidate",
    PAUSED: "a person to resume it",
}

#: Phases of a round, in order, and what each does.
PHASES: Final[dict[str, str]] = {
    "configure": "choosing devices and encoding the model",
    "collect": "waiting for the devices' updates",
    "aggregate": "making the next model of the updates",
    "evaluate": "measuring it on the holdout",
    "commit": "making it durable",
}

#: What a person may do about a campaign, in the order in which it is offered: action to the event's name.
ACTIONS: Final = ("approve", "pause", "resume", "abort")

#: How long a person may take (milliseconds): 30 days.
PERSON_DEADLINE_MS: Final = 30 * 86_400_000
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


def resume_event(paused_from: str) -> str:
    """The event that brings a paused campaign back to the state that it was paused in.

    Raises:
        ValueError: That state cannot be paused.
    """
    if paused_from not in PAUSABLE:
        raise ValueError(f"state {paused_from!r} cannot be paused")
    return f"resume-{paused_from}"


def actions(state: str) -> tuple[str, ...]:
    """What a person may do in a state, out of :data:`ACTIONS`."""
    offered = {event.partition("-")[0] for event in TRANSITIONS.get(state, {})}
    return tuple(action for action in ACTIONS if action in offered)


def deadline_ms(state: str, *, rounds: int, round_deadline_ms: int, recruiting_deadline_ms: int) -> int:
    """How long an active state may last (milliseconds), counted from when it was entered.

    Raises:
        ValueError: The state is final.
    """
    if state not in ACTIVE:
        raise ValueError(f"state {state!r} waits for nothing")
    return {
        DRAFT: PERSON_DEADLINE_MS,
        APPROVED: APPROVED_DEADLINE_MS,
        RECRUITING: recruiting_deadline_ms,
        RUNNING: rounds * round_deadline_ms + RUN_OVERHEAD_MS,
        GATING: GATING_DEADLINE_MS,
        PAUSED: PERSON_DEADLINE_MS,
    }[state]
