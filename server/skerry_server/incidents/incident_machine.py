"""The incident machine: which state follows which. Pure: no clock, no store.

An incident is opened by a detector and ends in a final state. The way of a cure is

    detected -> confirmed -> proposed -> approved -> training -> gated -> canary -> resolved

* ``detected``: a detector saw something. Confirmed when the evidence is enough to propose a cure; a data-quality
  fault is quarantined instead and has no row that leads to training: no model is trained on broken data.
* ``proposed``: a cure waits for an approval, by a person or by a named automatic policy.
* ``approved``: waits for what the campaign needs (labels, cool-down, a free task), then starts it.
* ``training``, ``gated``, ``canary``: the campaign, the gates and publication of its candidate, the rollout.
* An attempt that fails goes back to ``approved`` under a policy (``retry``), to ``rejected`` or ``rolled_back``
  without one, and to ``breaker_open`` when it was one too many (``trip``); only a person closes the breaker.
* What ended can be seen again: a detector opens a new incident, subject to ``guards.may_reopen``.

Every waiting state says what it waits for (:data:`WAITS_FOR`) and has a deadline (policy settings ``*_deadline_ms``):
``expire`` for those that wait for people or labels, a failed attempt for those that wait for work.

>>> next_state("proposed", "approve")
'approved'
"""

from __future__ import annotations

from typing import Final

from skerry_server.state_table import IllegalEventError

#: {state: {event: next state}}.
TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "detected": {
        "confirm": "confirmed",
        "quarantine": "quarantined",
        "approve": "approved",
        "subside": "resolved",
        "dismiss": "dismissed",
        "expire": "dismissed",
    },
    "confirmed": {
        "propose": "proposed",
        "approve": "approved",
        "subside": "resolved",
        "dismiss": "dismissed",
    },
    "proposed": {"approve": "approved", "subside": "resolved", "dismiss": "dismissed", "expire": "dismissed"},
    "approved": {"start": "training", "dismiss": "dismissed", "expire": "rejected"},
    "training": {"built": "gated", "retry": "approved", "reject": "rejected", "trip": "breaker_open"},
    "gated": {"roll_out": "canary", "retry": "approved", "reject": "rejected", "trip": "breaker_open"},
    "canary": {"cured": "resolved", "retry": "approved", "roll_back": "rolled_back", "trip": "breaker_open"},
    "quarantined": {"subside": "resolved", "dismiss": "dismissed"},
    "breaker_open": {"approve": "approved", "dismiss": "dismissed"},
    "resolved": {},
    "rejected": {},
    "rolled_back": {},
    "dismissed": {},
}

#: States that have ended.
FINAL: Final = frozenset(state for state, row in TRANSITIONS.items() if not row)
#: States in which an incident is still somebody's business.
OPEN: Final = frozenset(TRANSITIONS) - FINAL
#: States in which a cure is under way: one per task at a time.
IN_FLIGHT: Final = frozenset({"training", "gated", "canary"})
#: States in which nothing was begun yet, so that an incident may end by itself.
UNDECIDED: Final = frozenset({"detected", "confirmed", "proposed"})

#: What each waiting state waits for, for people.
WAITS_FOR: Final[dict[str, str]] = {
    "detected": "enough evidence to propose a cure",
    "confirmed": "a proposal",
    "proposed": "an approval",
    "approved": "what the campaign needs",
    "training": "the campaign",
    "gated": "the gates and the publication of the candidate",
    "canary": "the rollout",
    "quarantined": "the devices' data to be sound again",
    "breaker_open": "a person",
}


class IllegalIncidentEventError(IllegalEventError):
    """The event has no row in that state; nothing was changed."""

    subject = "an incident"
    table = TRANSITIONS


def next_state(state: str, event: str) -> str:
    """State after ``event``.

    Raises:
        IllegalIncidentEventError: The table has no such row.
    """
    return IllegalIncidentEventError.next_state(state, event)


def after_failure(state: str, *, attempts: int, maximum_attempts: int, automatic: bool) -> str:
    """The event of a failed attempt.

    Args:
        state: training, gated or canary.
        attempts: Failed attempts, this one included.
        maximum_attempts: As many open the breaker.
        automatic: Whether a policy may try again without a person.

    Returns:
        "trip", "retry", "roll_back" or "reject".
    """
    if attempts >= maximum_attempts:
        return "trip"
    if automatic:
        return "retry"
    return "roll_back" if state == "canary" else "reject"
