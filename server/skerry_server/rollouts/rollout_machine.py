"""The rollout machine: which state follows which, and nothing else. Pure: no clock, no store.

A rollout carries one release to the devices of one cohort, first to a few (*canary*), then to the rest (*fleet*).

* A release is *good on a device* when the device says that it committed it: it ran through its probation there.
  Written, downloaded or activated is not success.
* Each waiting state has a success row, a failure row and a deadline (:data:`WAITS_FOR` says for what it waits):

  ============== ========================================== =========================================================
  state          success                                    failure
  ============== ========================================== =========================================================
  pending        a device to begin with is online           none came until the deadline, or a person aborts: nothing
                                                            was instructed, so nothing has to be undone: aborted
  canary         gate passed: fleet                         a canary failed, none was healthy in time, or a person
                                                            aborts: rolling_back
  fleet          gate passed: finished                      too many failed, or a person aborts: rolling_back
  rolling_back   every reachable device is back:            there is none: after the deadline the rest stays instructed
                 rolled_back                                (desired state is retained) and the rollout ends the same
  ============== ========================================== =========================================================

* ``finished``, ``rolled_back`` and ``aborted`` are final: they have no rows.

>>> next_state("canary", "gate_passed")
'fleet'
"""

from __future__ import annotations

from typing import Final

from skerry_server.state_table import IllegalEventError

#: {state: {event: next state}}.
TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "pending": {"instructed": "canary", "timed_out": "aborted", "abort": "aborted"},
    "canary": {"gate_passed": "fleet", "gate_failed": "rolling_back", "abort": "rolling_back"},
    "fleet": {"gate_passed": "finished", "gate_failed": "rolling_back", "abort": "rolling_back"},
    "rolling_back": {"restored": "rolled_back"},
    "finished": {},
    "rolled_back": {},
    "aborted": {},
}

#: States in which a rollout still holds its devices.
ACTIVE: Final = frozenset(state for state, row in TRANSITIONS.items() if row)

#: What each waiting state waits for, for people.
WAITS_FOR: Final[dict[str, str]] = {
    "pending": "an online device to begin with",
    "canary": "the canary devices to commit the release",
    "fleet": "the other devices to commit the release",
    "rolling_back": "the instructed devices to return to what they ran before",
}

#: {state of a device in a rollout: states that may follow}. A healthy device may still fail: its errors are watched
#: until the rollout ends.
DEVICE_TRANSITIONS: Final[dict[str, frozenset[str]]] = {
    "pending": frozenset({"instructed", "healthy"}),
    "instructed": frozenset({"healthy", "failed", "restored"}),
    "healthy": frozenset({"failed", "restored"}),
    "failed": frozenset({"healthy", "restored"}),
    "restored": frozenset(),
}


class IllegalRolloutEventError(IllegalEventError):
    """The event has no row in that state; nothing was changed."""

    subject = "a rollout"
    table = TRANSITIONS


def next_state(state: str, event: str) -> str:
    """State after ``event``.

    Raises:
        IllegalRolloutEventError: The table has no such row.
    """
    return IllegalRolloutEventError.next_state(state, event)


def check_device_transition(state: str, following: str) -> str:
    """Return ``following`` if a device of a rollout may go there from ``state``.

    Raises:
        IllegalRolloutEventError: It may not.
    """
    if following not in DEVICE_TRANSITIONS.get(state, frozenset()):
        raise IllegalRolloutEventError(f"device {state}", f"become {following}")
    return following
