"""How a request that has a deadline, or comes while others are computed, gets its turn."""

from __future__ import annotations

import math
import time

from skerry_agent.engine.active import ActiveRelease, Rung
from skerry_agent.engine.admission import Admission
from skerry_agent.engine.errors import DeadlineError


def wait_for_turn(
    admission: Admission,
    active: ActiveRelease,
    rows: int,
    in_flight: int,
    deadline_us: float | None,
    started_ns: int,
) -> Rung:
    """Take the token of a request; returns the network that answers it. Whoever called gives the token back.

    Args:
        admission: The tokens.
        active: The release.
        rows: Of the request.
        in_flight: Requests under way, this one among them.
        deadline_us: Of the request; None: that of the device's owner.
        started_ns: When the request came (``time.perf_counter_ns``).

    Raises:
        DeadlineError: The answer would come too late; no token was taken.
        OverloadedError: Too many requests are under way; no token was taken.
    """
    admission.check(in_flight)
    limit_us = active.shed_us if deadline_us is None else deadline_us
    if limit_us == math.inf:
        admission.take()
        return active.rung
    queued = max(0, in_flight - admission.parallel)
    now_ns = time.perf_counter_ns()
    rung = active.admit(rows, queued, admission.parallel, now_ns / 1e9, deadline_us)
    if not queued:
        admission.take()
        return rung
    compute_us = rung.cost.expected_us(rows, now_ns / 1e9)
    left_us = limit_us - (now_ns - started_ns) / 1000 - compute_us
    if not admission.take_within(left_us / 1e6):
        waited_us = (time.perf_counter_ns() - started_ns) / 1000
        raise DeadlineError(limit_us, waited_us + compute_us)
    return rung
