"""What the engine counts about itself, for status, health reports and metrics.

``errors`` are failures of the release or of this machine. A request that is refused for its own fault is not one:
a health gate must not roll a good release back because an application sends nonsense. Nor is one that is shed because
its deadline cannot be met or too many are under way. Refused and shed requests are counted apart.

Latencies are kept for each *form* that has answered: a network of the ladder in one of its variants on one backend.
Each bucket of their histograms remembers one request as an example: the slowest of those that were added up last.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.errors import DeadlineError, MissingValueError, OutOfRangeError, OverloadedError
from skerry_agent.errors import InputError

#: Latencies that the percentiles are taken over.
RECENT = 2048
#: Upper bounds of the latency buckets (us).
LATENCY_BOUNDS = (25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000)
_BOUNDS = np.array(LATENCY_BOUNDS)
_EMPTY = (0,) * (len(LATENCY_BOUNDS) + 1)


#: Forms that are kept apart; a device that changes its release more often than that counts the rest as the last one.
FORMS = 64


@dataclass(frozen=True)
class Form:
    """What answers requests.

    Attributes:
        variant: Variant of the network.
        rung: Number of the network on the ladder; 0 is the release's own.
        backend: Backend that runs it.
    """

    variant: str
    rung: int
    backend: str


@dataclass(frozen=True)
class Exemplar:
    """One request of a latency bucket.

    Attributes:
        request_id: Its id.
        latency_us: Its latency.
        at_s: When it was answered (Unix time, seconds).
    """

    request_id: str
    latency_us: float
    at_s: float


@dataclass(frozen=True)
class FormValues:
    """Latencies of one form.

    Attributes:
        form: What answered.
        buckets: Requests per latency bucket; the last is everything above the last bound.
        latency_sum_us: Their sum.
        exemplars: One request per bucket, or None.
    """

    form: Form
    buckets: tuple[int, ...]
    latency_sum_us: float
    exemplars: tuple[Exemplar | None, ...]


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
        shed: Reason to requests that were not computed: "deadline", "overload".
        late: Requests that were answered after their deadline.
        forms: Latencies of each form that has answered.
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
    shed: dict[str, int]
    late: int
    forms: tuple[FormValues, ...]


class _FormCounts:
    """Latencies of one form, while they are counted."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.buckets = np.zeros(len(LATENCY_BOUNDS) + 1, dtype=np.int64)
        self.sum = 0.0
        self.exemplars: list[Exemplar | None] = [None] * self.buckets.size

    def add(self, latencies: npt.NDArray[np.float64], ids: list[str], ended_s: npt.NDArray[np.float64]) -> None:
        cells = _BOUNDS.searchsorted(latencies, side="left")
        self.buckets += np.bincount(cells, minlength=self.buckets.size)
        self.sum += float(latencies.sum())
        order = np.argsort(latencies, kind="stable")
        # The last one of a cell in ascending order is its slowest.
        for index in order[np.append(np.diff(cells[order]) != 0, True)]:
            if ids[index]:
                exemplar = Exemplar(ids[index], float(latencies[index]), float(ended_s[index]))
                self.exemplars[cells[index]] = exemplar

    def read(self) -> FormValues:
        return FormValues(self.form, tuple(self.buckets.tolist()), self.sum, tuple(self.exemplars))


class Counters:
    """Counters of one engine. Thread-safe.

    Args:
        wall: Unix time in seconds.
        clock_ns: The clock of the requests' times.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._wall = wall
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._recent_forms: collections.deque[int] = collections.deque(maxlen=RECENT)
        self._uncounted: collections.deque[tuple[int, float, int, str, int]] = collections.deque()
        self._forms: list[_FormCounts] = []
        self._shed = {"deadline": 0, "overload": 0}
        self._late = 0
        self._requests = self._errors = self._rows = 0
        self._requests_before = self._errors_before = 0
        self._refused = {"schema": 0, "missing": 0, "out_of_range": 0}

    def form(self, form: Form) -> int:
        """Number of a form, by which its answers are counted."""
        with self._lock:
            for number, counts in enumerate(self._forms):
                if counts.form == form:
                    return number
            if len(self._forms) < FORMS:
                self._forms.append(_FormCounts(form))
            return len(self._forms) - 1

    def answered(self, rows: int, latency_us: float, form: int, request_id: str = "", ended_ns: int = 0) -> None:
        """Count an answered request: a request only leaves its numbers, which are added up many at a time.

        Args:
            rows: Of the request.
            latency_us: Time from the call to the answer.
            form: Number of the form that answered.
            request_id: Of the request; empty: it is no example.
            ended_ns: When it was answered, by the clock of the constructor.
        """
        self._uncounted.append((rows, latency_us, form, request_id, ended_ns))
        if len(self._uncounted) >= RECENT:
            with self._lock:
                self._add_up()

    def late(self) -> None:
        """Count a request that was answered after its deadline, beside :meth:`answered`."""
        with self._lock:
            self._late += 1

    def shed(self, error: DeadlineError | OverloadedError) -> None:
        """Count a request that was not computed."""
        with self._lock:
            self._shed["deadline" if isinstance(error, DeadlineError) else "overload"] += 1

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
            forms = tuple(counts.read() for counts in self._forms)
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
                buckets=tuple(sum(cells) for cells in zip(*(form.buckets for form in forms), strict=True)) or _EMPTY,
                latency_sum_us=sum(form.latency_sum_us for form in forms),
                shed=dict(self._shed),
                late=self._late,
                forms=forms,
            )

    def latest(self, since: int) -> tuple[int, list[float]]:
        """Requests answered so far, and the latencies (us) of those after ``since``, the newest first.

        At most :data:`RECENT` latencies are kept.
        """
        with self._lock:
            self._add_up()
            fresh = min(max(0, self._requests - since), len(self._recent))
            return self._requests, list(itertools.islice(reversed(self._recent), fresh))

    def latest_of(self, form: int, since: int) -> tuple[int, list[float]]:
        """Like :meth:`latest`, of the answers of one form; the first number still counts all requests."""
        with self._lock:
            self._add_up()
            fresh = min(max(0, self._requests - since), len(self._recent))
            pairs = zip(reversed(self._recent), reversed(self._recent_forms), strict=True)
            return self._requests, [latency for latency, of in itertools.islice(pairs, fresh) if of == form]

    def _add_up(self) -> None:
        """Take what requests left, one by one because others append meanwhile; the holder of the lock calls it."""
        taken = [self._uncounted.popleft() for _ in range(len(self._uncounted))]
        if not taken:
            return
        rows, latencies, forms, ids, ended = zip(*taken, strict=True)
        took, of = np.array(latencies), np.array(forms)
        # Unix time of the answers, from the clock of their latencies.
        ended_s = self._wall() + (np.array(ended, dtype=np.float64) - self._clock_ns()) / 1e9
        for number in np.unique(of):
            chosen = np.flatnonzero(of == number)
            self._forms[number].add(took[chosen], [ids[index] for index in chosen], ended_s[chosen])
        self._requests += len(taken)
        self._rows += sum(rows)
        self._recent.extend(latencies)
        self._recent_forms.extend(forms)
