"""What an error of the serving process means for the row that was asked, and for the stream (pure)."""

from __future__ import annotations

import enum

from skerry_agent.client.errors import (
    BusyError,
    ChangedModelError,
    DisconnectedError,
    ForbiddenError,
    LateError,
    NoActiveReleaseError,
    RefusedRequestError,
)
from skerry_agent.errors import AgentError

#: How often one row may be asked: a row at which the serving process dies again and again must not hold up the others.
ATTEMPTS = 3


class Verdict(enum.Enum):
    """What becomes of the row."""

    #: The row is wrong; its sender is told, the next one follows.
    REFUSED = "refused"
    #: Its deadline cannot be met; told, the next one follows.
    LATE = "late"
    #: No answer, through no fault of the row; told, the next one follows.
    FAILED = "failed"
    #: Too much at once: the row is asked again after a moment.
    BUSY = "busy"
    #: There is nobody to ask: all rows wait.
    AWAY = "away"
    #: This process may not ask at all: the stream ends.
    FORBIDDEN = "forbidden"


_TABLE: tuple[tuple[type[AgentError], Verdict], ...] = (
    (RefusedRequestError, Verdict.REFUSED),
    (LateError, Verdict.LATE),
    (BusyError, Verdict.BUSY),
    (NoActiveReleaseError, Verdict.AWAY),
    (DisconnectedError, Verdict.AWAY),
    (ChangedModelError, Verdict.REFUSED),
    (ForbiddenError, Verdict.FORBIDDEN),
)


def judge(error: AgentError, *, attempts: int) -> Verdict:
    """What to do with a row.

    Args:
        error: What asking for it came to.
        attempts: How often it was asked, this time included; 0: it was not sent.
    """
    verdict = next((verdict for kind, verdict in _TABLE if isinstance(error, kind)), Verdict.FAILED)
    # A row may wait for a release as long as it likes: asking cost the serving process nothing.
    costly = verdict is Verdict.BUSY or isinstance(error, DisconnectedError)
    return Verdict.FAILED if costly and attempts >= ATTEMPTS else verdict


def wait_s(tries: int, uniform: float) -> float:
    """Time before the next try (s): full jitter below 0.05 s doubled each time, at most 2 s.

    Args:
        tries: Tries in a row that came to nothing, 1 or more.
        uniform: Drawn from [0, 1].
    """
    return uniform * min(2.0, 0.05 * 2.0 ** min(tries, 10))
