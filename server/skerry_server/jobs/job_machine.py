"""The life of a job. Pure: no I/O.

======= ========= ======= ================================================================
state   event     next    when
======= ========= ======= ================================================================
queued  start     running the runner starts a process; counts one attempt
running succeed   done    the process wrote its result
running refuse    failed  the process says that no repetition can help (bad payload)
running lose      queued  the process died or met trouble that may pass; attempts are left
running exhaust   failed  the same, and no attempt is left
running interrupt queued  the runner was asked to stop; the attempt is given back
done    restart   queued  whoever owns the work wants it to go on: a paused campaign is resumed
failed  restart   queued  likewise
======= ========= ======= ================================================================
"""

from __future__ import annotations

from skerry_server.errors import ConflictError

QUEUED = "queued"
RUNNING = "running"
DONE = "done"
FAILED = "failed"

#: {state: {event: next state}}. "done" and "failed" are ends, unless their owner restarts them.
JOB: dict[str, dict[str, str]] = {
    QUEUED: {"start": RUNNING},
    RUNNING: {"succeed": DONE, "refuse": FAILED, "lose": QUEUED, "exhaust": FAILED, "interrupt": QUEUED},
    DONE: {"restart": QUEUED},
    FAILED: {"restart": QUEUED},
}


def advance(state: str, event: str, *, job_id: str) -> str:
    """The state after ``event``; raises ConflictError when it is not possible in ``state``."""
    following = JOB[state].get(event)
    if following is None:
        raise ConflictError(f"job {job_id} is {state}: {event!r} is not possible")
    return following


def trouble(*, attempts: int, maximum_attempts: int) -> str:
    """The event of a job whose process did not finish: "lose" while attempts are left, else "exhaust"."""
    return "lose" if attempts < maximum_attempts else "exhaust"


def backoff_ms(attempts: int) -> int:
    """Wait before the next attempt after ``attempts`` that failed: 250 ms, doubled each time, at most 30 s."""
    return 0 if attempts <= 0 else min(30_000, 250 << min(attempts - 1, 10))
