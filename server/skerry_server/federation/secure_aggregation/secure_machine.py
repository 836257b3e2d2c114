"""The phases of a session of secure aggregation on the control plane, as a table. Pure.

======== ============================================ ==================================================
phase    close                                        fail
======== ============================================ ==================================================
keys     enough devices advertised keys: shares       too few: failed
shares   more than two thirds shared: masked          too few: failed
masked   more than two thirds sent vectors: confirm   too few: failed
confirm  more than two thirds signed: unmask          too few: failed
unmask   every mask is known: done                    a secret has too few or false shares: failed
======== ============================================ ==================================================

>>> next_phase("keys", "close")
'shares'
"""

from __future__ import annotations

from typing import Final

from skerry_server.state_table import IllegalEventError

KEYS: Final = "keys"
SHARES: Final = "shares"
MASKED: Final = "masked"
CONFIRM: Final = "confirm"
UNMASK: Final = "unmask"
DONE: Final = "done"
FAILED: Final = "failed"

#: {phase: {event: next phase}}.
TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    KEYS: {"close": SHARES, "fail": FAILED},
    SHARES: {"close": MASKED, "fail": FAILED},
    MASKED: {"close": CONFIRM, "fail": FAILED},
    CONFIRM: {"close": UNMASK, "fail": FAILED},
    UNMASK: {"close": DONE, "fail": FAILED},
    DONE: {},
    FAILED: {},
}


class IllegalPhaseError(IllegalEventError):
    """The event has no row in that phase; nothing was changed."""

    subject = "a session of secure aggregation"
    table = TRANSITIONS


def next_phase(phase: str, event: str) -> str:
    """Phase after ``event``; raises IllegalPhaseError when there is no such row."""
    return IllegalPhaseError.next_state(phase, event)
