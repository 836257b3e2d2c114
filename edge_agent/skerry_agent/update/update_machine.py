"""The update machine: which state a device's update is in, and what may happen next. Pure.

::

    idle ─ start ─► need ─ allowed ─► downloading ─ downloaded ─► verifying ─ verified ─► staging ─ staged ─►
    proving ─ proved ─► activating ─ activated ─► probation ─ healthy ─► committed

*need* waits for what lies outside this device's work: approval by the signed metadata, a maintenance window, a network
that may be used, free space. ``hold`` leads back to it from *downloading*, when the network may not be used any more,
and from *proving*, when the release may not be switched to now: what was downloaded stays. It has no ``retry`` and no
``reject``, for the artifact is not to blame for a refusal.

Nothing that answers requests changes before *activating*: until then a failure costs only time. A failure that the
artifact is to blame for is counted by its digest: ``retry`` goes back to *downloading*, ``reject`` ends in
*quarantined* after :data:`FAILURES_BEFORE_QUARANTINE` of them. ``roll_back`` ends in *rolled_back*: the release that
answered before answers. *downloading* has no ``retry`` and no ``reject``: a chunk that is wrong is dropped and asked
for again, so only its deadline ends it. *activating* and *probation* have no ``supersede`` and no ``retry``: a switch
that has begun is finished or undone before a newer instruction is looked at.
"""

from __future__ import annotations

import enum

from skerry_agent.state_table import next_state

#: Failures of one bundle digest after which a device never tries it again.
FAILURES_BEFORE_QUARANTINE = 3


class State(enum.StrEnum):
    """Where an update is; the names are those of UpdateStatus on the wire, in lower case."""

    IDLE = "idle"
    NEED = "need"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGING = "staging"
    PROVING = "proving"
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    QUARANTINED = "quarantined"


class Event(enum.StrEnum):
    """What can happen to an update."""

    #: A newer desired state names a release that does not answer here yet.
    START = "start"
    #: It names the release that answers already.
    CONFIRM = "confirm"
    #: It names a digest that failed too often.
    FORBID = "forbid"
    #: It names something else than what is being worked on.
    SUPERSEDE = "supersede"
    #: It may be installed now.
    ALLOWED = "allowed"
    #: It may not be installed now any more.
    HOLD = "hold"
    DOWNLOADED = "downloaded"
    VERIFIED = "verified"
    STAGED = "staged"
    PROVED = "proved"
    ACTIVATED = "activated"
    HEALTHY = "healthy"
    RETRY = "retry"
    REJECT = "reject"
    ROLL_BACK = "roll_back"


_SETTLED: dict[Event, State] = {
    Event.START: State.NEED,
    Event.CONFIRM: State.COMMITTED,
    Event.FORBID: State.QUARANTINED,
}
_BEFORE_SWITCH: dict[Event, State] = {
    Event.SUPERSEDE: State.IDLE,
    Event.RETRY: State.DOWNLOADING,
    Event.REJECT: State.QUARANTINED,
    Event.ROLL_BACK: State.ROLLED_BACK,
}
_AFTER_SWITCH: dict[Event, State] = {Event.REJECT: State.QUARANTINED, Event.ROLL_BACK: State.ROLLED_BACK}

#: {state: {event: next state}}
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.IDLE: _SETTLED,
    State.NEED: {
        Event.ALLOWED: State.DOWNLOADING,
        Event.SUPERSEDE: State.IDLE,
        Event.ROLL_BACK: State.ROLLED_BACK,
    },
    State.DOWNLOADING: {
        Event.DOWNLOADED: State.VERIFYING,
        Event.HOLD: State.NEED,
        Event.SUPERSEDE: State.IDLE,
        Event.ROLL_BACK: State.ROLLED_BACK,
    },
    State.VERIFYING: {Event.VERIFIED: State.STAGING, **_BEFORE_SWITCH},
    State.STAGING: {Event.STAGED: State.PROVING, **_BEFORE_SWITCH},
    State.PROVING: {Event.PROVED: State.ACTIVATING, Event.HOLD: State.NEED, **_BEFORE_SWITCH},
    State.ACTIVATING: {Event.ACTIVATED: State.PROBATION, **_AFTER_SWITCH},
    State.PROBATION: {Event.HEALTHY: State.COMMITTED, **_AFTER_SWITCH},
    State.COMMITTED: _SETTLED,
    State.ROLLED_BACK: _SETTLED,
    State.QUARANTINED: _SETTLED,
}

#: States in which nothing is going on.
SETTLED = frozenset({State.IDLE, State.COMMITTED, State.ROLLED_BACK, State.QUARANTINED})
#: States in which the slot pointer may name a release that is not committed.
SWITCHED = frozenset({State.ACTIVATING, State.PROBATION})

#: How long each state may last, seconds of running time of the control process; probation has its own length on top.
#: Time in which the disk fails does not count, for it has a length of its own.
DEADLINES_S: dict[State, float] = {
    State.NEED: 28 * 86_400.0,
    State.DOWNLOADING: 7 * 86_400.0,
    State.VERIFYING: 1_800.0,
    State.STAGING: 1_800.0,
    State.PROVING: 600.0,
    State.ACTIVATING: 180.0,
    State.PROBATION: 180.0,
}

#: How long the disk may fail, or be full, in one state (seconds of running time).
DISK_DEADLINE_S = 7 * 86_400.0

#: How often a restarted control process may find each state before it gives up: breaks loops of a release that
#: takes the process down with it. Need and downloading are left out: they touch nothing of the release.
RESUMES: dict[State, int] = dict.fromkeys(set(State) - SETTLED - {State.NEED, State.DOWNLOADING}, 10)


def advance(state: State, event: Event) -> State:
    """The state after ``event``.

    Raises:
        IllegalEventError: ``state`` has no such row.
    """
    return next_state(TRANSITIONS, state, event, subject="an update")
