"""Counts of one open window of one release.

A request only appends its features, scores and latency to a block, which takes no lock (appending to a deque is one
step for other threads); a full block is counted in one vectorised step, so the cost per request is about a microsecond.
A value v of feature f lies in cell ``number of edges < v``
(see ``skerry_contract.histogram``). A feature that is NaN is left out of its histogram, not out of the others.

Invariants: every histogram of predictions, confidence and latency sums to ``rows``, but the predictions are empty while
the device's own parameters answer: the control plane compares them with what the release predicts. Refused requests are
never rows, they are counted by why they were refused; a window is reported once; an empty window is not reported.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.backend import Floats
from skerry_agent.engine.errors import MissingValueError, OutOfRangeError
from skerry_agent.engine.prediction import confidences
from skerry_agent.errors import InputError
from skerry_contract.histogram import encode_counts
from skerry_contract.v1.telemetry_pb2 import DriftReport, HistogramEdges

Counts = npt.NDArray[np.int64]

#: Rows that are counted in one step.
BLOCK_ROWS = 256


@dataclass(frozen=True)
class WindowLimits:
    """When a window closes: whichever comes first.

    Attributes:
        rows: After so many rows, >= 1. A batch is never split, so a window may be a batch larger.
        seconds: After so much time, > 0.
    """

    rows: int
    seconds: float


@dataclass(frozen=True)
class WindowNumbers:
    """Numbers windows over all releases of one run of a process.

    Attributes:
        boot_id: Identity of the run; (device, boot_id, number) names a window for ever.
    """

    boot_id: str
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def take(self) -> int:
        """The next number, from 1."""
        return next(self._numbers)


class EdgeTable:
    """Counts values of all features at once.

    Args:
        edges: Checked edges of F features.
    """

    def __init__(self, edges: HistogramEdges) -> None:
        self._edges = [np.array(feature.edges) for feature in edges.features]
        self._starts = np.cumsum([0, *(array.size + 1 for array in self._edges)])
        self.features = len(self._edges)
        self.cells = int(self._starts[-1])

    def count(self, values: Floats) -> Counts:
        """Counts of float32 [N, F] as int64 [cells], feature after feature."""
        columns = np.ascontiguousarray(values.T, dtype=np.float64)
        flat = np.empty(columns.shape, dtype=np.int64)
        for index, edges in enumerate(self._edges):
            flat[index] = edges.searchsorted(columns[index], side="left")
        flat += self._starts[:-1, np.newaxis]
        missing = np.isnan(columns)
        kept = flat[~missing] if missing.any() else flat.ravel()
        return np.bincount(kept, minlength=self.cells).astype(np.int64, copy=False)

    def split(self, counts: Counts) -> list[Counts]:
        """Counts per feature."""
        return np.split(counts, self._starts[1:-1])


class DriftAccumulator:
    """Counts requests into windows and hands out a report for each. Thread-safe.

    Args:
        release_id: Release that answers the requests.
        edges: Its edges.
        edges_sha256: Digest of its drift_edges.pb.
        limits: When a window closes.
        numbers: Shared by all accumulators of the process.
        emit: Takes a finished report; must not block.
        rung: Number of the network of the ladder that answers the requests.
        variant: Its form.
        predictions: Whether the predictions are those of the release and count.
        monotonic: Seconds for window lengths.
        wall: Unix time in seconds, for the report.
    """

    def __init__(
        self,
        *,
        release_id: str,
        edges: HistogramEdges,
        edges_sha256: bytes,
        limits: WindowLimits,
        numbers: WindowNumbers,
        emit: Callable[[DriftReport], None],
        rung: int = 0,
        variant: str = "",
        predictions: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._release_id = release_id
        self._edges_sha256 = edges_sha256
        self._limits = self._next_limits = limits
        self._numbers = numbers
        self._emit = emit
        self._rung = rung
        self._variant = variant
        self._count_predictions = predictions
        self._monotonic = monotonic
        self._wall = wall
        self._table = EdgeTable(edges)
        self._confidence_edges = np.array(edges.confidence_edges)
        self._latency_edges = np.array(edges.latency_edges)
        self._lock = threading.Lock()
        self._classes = len(edges.classes)
        self._block: collections.deque[tuple[Floats, Floats, float]] = collections.deque()
        self._surplus = 0  # rows of the block beyond one a request
        self._open_window()

    def record(self, features: Floats, scores: Floats, latency_us: float) -> None:
        """Count an answered request.

        The arrays are kept until their block is counted, so they must not be changed any more.

        Args:
            features: float32 [batch, F].
            scores: float32 [batch, classes], finite.
            latency_us: How long each of its rows waited for the answer.
        """
        self._block.append((features, scores, latency_us))
        rows = len(features)
        if rows != 1:
            with self._lock:
                self._surplus += rows - 1
        if len(self._block) + self._surplus >= self._full_at:
            with self._lock:
                reports = self._count_block()
            self._emit_all(reports)

    def refuse(self, error: InputError, *, rows: int = 1) -> None:
        """Count a refused request by its reason: rows with NaN, rows out of range, or one schema error."""
        with self._lock:
            if isinstance(error, MissingValueError):
                self._missing += error.rows
            elif isinstance(error, OutOfRangeError):
                self._out_of_range += error.rows
            else:
                self._schema_errors += rows

    def limit(self, limits: WindowLimits) -> None:
        """Change when windows close, from the next window on; an open one that is empty is the next one."""
        with self._lock:
            reports = self._count_block()
            self._next_limits = limits
            if limits != self._limits and self._empty:
                self._open_window()
        self._emit_all(reports)

    def tick(self) -> None:
        """Close the window if its time is over."""
        with self._lock:
            reports = self._count_block()
            if self._monotonic() >= self._deadline:
                reports += self._close_window()
        self._emit_all(reports)

    def flush(self) -> None:
        """Close the window now: at shutdown, or when another release takes over."""
        with self._lock:
            reports = self._count_block() + self._close_window()
        self._emit_all(reports)

    def _emit_all(self, reports: list[DriftReport]) -> None:
        for report in reports:
            self._emit(report)

    @property
    def _empty(self) -> bool:
        return not (self._rows or self._missing or self._out_of_range or self._schema_errors)

    def _open_window(self) -> None:
        self._limits = self._next_limits
        self._deadline = self._monotonic() + self._limits.seconds
        self._started_ms = int(self._wall() * 1000)
        self._rows = self._missing = self._out_of_range = self._schema_errors = 0
        self._full_at = min(BLOCK_ROWS, self._limits.rows)
        self._feature_counts: Counts = np.zeros(self._table.cells, dtype=np.int64)
        self._predictions: Counts = np.zeros(self._classes, dtype=np.int64)
        self._confidence: Counts = np.zeros(self._confidence_edges.size + 1, dtype=np.int64)
        self._latency: Counts = np.zeros(self._latency_edges.size + 1, dtype=np.int64)

    def _count_block(self) -> list[DriftReport]:
        """Count what requests left; gives the reports of windows that are full by it."""
        reports: list[DriftReport] = []
        while parts := self._take_parts():
            self._count(parts)
            if self._rows >= self._limits.rows:
                reports += self._close_window()
            else:
                self._full_at = min(BLOCK_ROWS, self._limits.rows - self._rows)
        return reports

    def _take_parts(self) -> list[tuple[Floats, Floats, float]]:
        """Requests that still belong into the open window; one by one, because others append meanwhile."""
        parts: list[tuple[Floats, Floats, float]] = []
        rows = self._rows
        while self._block and rows < self._limits.rows:
            parts.append(self._block.popleft())
            rows += len(parts[-1][0])
        self._surplus -= rows - self._rows - len(parts)
        return parts

    def _count(self, parts: list[tuple[Floats, Floats, float]]) -> None:
        features, scores, latencies = zip(*parts, strict=True)
        rows = [len(part) for part in scores]
        joined = np.concatenate(scores)
        self._rows += sum(rows)
        self._feature_counts += self._table.count(np.concatenate(features))
        if self._count_predictions:
            self._predictions += np.bincount(joined.argmax(axis=1), minlength=self._predictions.size)
        for counts, edges, values in (
            (self._confidence, self._confidence_edges, confidences(joined).astype(np.float64)),
            (self._latency, self._latency_edges, np.repeat(np.array(latencies), rows)),
        ):
            counts += np.bincount(np.searchsorted(edges, values, side="left"), minlength=counts.size)

    def _close_window(self) -> list[DriftReport]:
        """Report of the open window, whose requests are counted; none if it is empty. A new one is opened."""
        if self._empty:
            self._open_window()
            return []
        report = DriftReport(
            boot_id=self._numbers.boot_id,
            window=self._numbers.take(),
            release_id=self._release_id,
            edges_sha256=self._edges_sha256,
            started_unix_ms=self._started_ms,
            ended_unix_ms=max(self._started_ms, int(self._wall() * 1000)),
            rows=self._rows,
            missing=self._missing,
            out_of_range=self._out_of_range,
            schema_errors=self._schema_errors,
            features=[encode_counts(counts.tolist()) for counts in self._table.split(self._feature_counts)],
            predictions=encode_counts(self._predictions.tolist()),
            confidence=encode_counts(self._confidence.tolist()),
            latency=encode_counts(self._latency.tolist()),
            rung=self._rung,
            variant=self._variant,
        )
        self._open_window()
        return [report]
