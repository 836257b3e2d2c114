"""What an updater does next, decided from what it sees. Pure."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from skerry_agent.update.desired import Instruction
from skerry_agent.update.download import FULL
from skerry_agent.update.journal import Journal
from skerry_agent.update.slots import Pointer
from skerry_agent.update.update_machine import FAILURES_BEFORE_QUARANTINE, Event

#: Least requests before a rate of errors means anything.
PROBATION_REQUESTS = 20
#: Share of requests with errors that a release on probation may have.
PROBATION_ERROR_RATE = 0.05
#: How long serving may be away during probation (seconds): it may be killed and come back.
PROBATION_ABSENCE_S = 45.0
#: How often serving may come back as another process during probation.
PROBATION_RESTARTS = 3


def take_up(instruction: Instruction, journal: Journal, pointer: Pointer | None) -> Event | None:
    """What a newer desired state means for a settled machine; None if it names no release."""
    if instruction.manifest is None:
        return None
    if pointer is not None and pointer.committed and pointer.release_id == instruction.release_id:
        return Event.CONFIRM
    if journal.failures.get(instruction.digest, 0) >= FAILURES_BEFORE_QUARANTINE:
        return Event.FORBID
    return Event.START


def after_failure(journal: Journal, digest: str, *, otherwise: Event) -> Event:
    """``otherwise``, or REJECT if this failure of the artifact is one too many."""
    return Event.REJECT if journal.failures.get(digest, 0) + 1 >= FAILURES_BEFORE_QUARANTINE else otherwise


@dataclass(frozen=True)
class Sight:
    """One look at the serving process.

    Attributes:
        release_id: Release that answers; empty while serving has none (it is starting).
        pid: Its process; 0 if not known.
        requests: Requests since that release was activated.
        errors: Of those, answered with an error.
    """

    release_id: str
    pid: int
    requests: int
    errors: int


@dataclass
class Probation:
    """What was seen of a release on probation; times are monotonic seconds.

    Attributes:
        release_id: The release.
        started: When probation began in this process.
        last_seen: When serving last answered.
        pids: Serving processes seen.
    """

    release_id: str
    started: float
    last_seen: float
    pids: set[int] = field(default_factory=set)

    def judge(self, sight: Sight | None, now: float, probation_s: float) -> tuple[Event | None, str]:
        """Take in one look and decide.

        Args:
            sight: None if serving did not answer.
            now: Monotonic seconds.
            probation_s: How long the release has to hold.

        Returns:
            HEALTHY, ROLL_BACK or None for "go on watching", and why.
        """
        if sight is None or not sight.release_id:
            away = now - self.last_seen
            if away > PROBATION_ABSENCE_S:
                return Event.ROLL_BACK, f"serving has not answered with a release for {away:.0f} s"
            return None, "waits for serving to answer"
        self.last_seen = now
        self.pids.add(sight.pid)
        if len(self.pids) > PROBATION_RESTARTS:
            return Event.ROLL_BACK, f"serving was started {len(self.pids)} times"
        if sight.release_id != self.release_id:
            return Event.ROLL_BACK, f"serving answers with {sight.release_id}"
        if sight.requests >= PROBATION_REQUESTS and sight.errors > PROBATION_ERROR_RATE * sight.requests:
            return Event.ROLL_BACK, f"{sight.errors} of {sight.requests} requests failed"
        left = probation_s - (now - self.started)
        if left > 0:
            return None, f"on probation for {left:.0f} s more"
        return Event.HEALTHY, f"{sight.requests} requests, {sight.errors} errors"


def disk_trouble(error: OSError) -> str:
    """What an update waits for after ``error``, for people."""
    why = f"{error.strerror or type(error).__name__} ({error.filename or 'data directory'})"
    if error.errno in FULL:
        return f"waits for free space: {why}"
    if error.errno == errno.EROFS:
        return f"waits for a disk that can be written: {why}"
    return f"the disk fails: {why}"
