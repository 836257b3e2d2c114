"""What the engine counts about itself, for status, health reports and metrics.

``errors`` are failures of the release or of this machine. A request that is refused for its own fault is not one:
a health gate must not roll a good release back because an application sends nonsense. Refusals are counted apart.
"""

from __future__ import annotations

import collections
import itertools
import threading
from dataclasses import dataclass

import numpy as np

from skerry_agent.engine.errors import MissingValueError, OutOfRangeError
from skerry_agent.errors import InputError

#: Latencies that the percentiles are taken over.
RECENT = 2048
#: Upper bounds of the latency buckets (us).
LATENCY_BOUNDS = (25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000)
_BOUNDS = np.array(LATENCY_BOUNDS)


@dataclass(frozen=True)
class CounterValues:
    """A consistent reading.

    Attributes:
        requests: Answered since the process started.
        errors: Failed since the process started.
        release_requests: Answered since the current release was activated.
        release_errors: Failed since then.
        rows: Rows answered since the process started.
        refused: Reason to refused requests: "schema", "missing", "out_of_range".
        latency_p50_us: Median over the last 2,048 requests; 0 without any.
        latency_p99_us: 99th percentile over the same.
        buckets: Requests per latency bucket; the last is everything above the last bound.
        latency_sum_us: Sum of all latencies.
    """

    requests: int
    errors: int
    release_requests: int
    release_errors: int
    rows: int
    refused: dict[str, int]
    latency_p50_us: float
    latency_p99_us: float
    buckets: tuple[int, ...]
    latency_sum_us: float


class Counters:
    """Counters of one engine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._uncounted: collections.deque[tuple[int, float]] = collections.deque()
        self._requests = self._errors = self._rows = 0
        self._requests_before = self._errors_before = 0
        self._refused = {"schema": 0, "missing": 0, "out_of_range": 0}
        self._buckets = np.zeros(len(LATENCY_BOUNDS) + 1, dtype=np.int64)
        self._sum = 0.0

    def answered(self, rows: int, latency_us: float) -> None:
        """Count an answered request: a request only leaves its numbers, which are added up many at a time."""
        self._uncounted.append((rows, latency_us))
        if len(self._uncounted) >= RECENT:
            with self._lock:
                self._add_up()

    def failed(self) -> None:
        """Count a request that failed through no fault of its own."""
        with self._lock:
            self._errors += 1

    def refused(self, error: InputError) -> None:
        """Count a refused request."""
        reason = "schema"
        if isinstance(error, MissingValueError):
            reason = "missing"
        elif isinstance(error, OutOfRangeError):
            reason = "out_of_range"
        with self._lock:
            self._refused[reason] += 1

    def release_changed(self) -> None:
        """Start the counters of the release anew."""
        with self._lock:
            self._add_up()
            self._requests_before, self._errors_before = self._requests, self._errors

    def read(self) -> CounterValues:
        """A consistent reading."""
        with self._lock:
            self._add_up()
            recent = np.array(self._recent)
            p50, p99 = (float(v) for v in np.percentile(recent, (50, 99))) if recent.size else (0.0, 0.0)
            return CounterValues(
                requests=self._requests,
                errors=self._errors,
                release_requests=self._requests - self._requests_before,
                release_errors=self._errors - self._errors_before,
                rows=self._rows,
                refused=dict(self._refused),
                latency_p50_us=p50,
                latency_p99_us=p99,
                buckets=tuple(self._buckets.tolist()),
                latency_sum_us=self._sum,
            )

    def latest(self, since: int) -> tuple[int, list[float]]:
        """Requests answered so far, and the latencies (us) of those after ``since``, the newest first.

        At most :data:`RECENT` latencies are kept.
        """
        with self._lock:
            self._add_up()
            fresh = min(max(0, self._requests - since), len(self._recent))
            return self._requests, list(itertools.islice(reversed(self._recent), fresh))

    def _add_up(self) -> None:
        """Take what requests left, one by one because others append meanwhile; the holder of the lock calls it."""
        taken = [self._uncounted.popleft() for _ in range(len(self._uncounted))]
        if not taken:
            return
        latencies = np.array([latency for _, latency in taken])
        self._requests += len(taken)
        self._rows += sum(rows for rows, _ in taken)
        self._buckets += np.bincount(_BOUNDS.searchsorted(latencies, side="left"), minlength=self._buckets.size)
        self._sum += float(latencies.sum())
        self._recent.extend(latencies.tolist())
