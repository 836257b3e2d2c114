"""Drift reports as counts: parsed, checked against the edges of their release, summed and bounded. Pure.

A report is data of a device, so it is not trusted: its cells must fit the edges, its counts must fit its rows, and no
look weighs more than :data:`LARGEST_LOOK` rows, however many it claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skerry_contract.errors import WireError
from skerry_contract.histogram import decode_counts
from skerry_contract.v1.telemetry_pb2 import DriftReport, HistogramCounts, HistogramEdges
from skerry_contract.wire import parse_message
from skerry_server.monitoring.detector import Array

#: Rows that one look may weigh; larger ones are scaled down.
LARGEST_LOOK = 20_000


@dataclass(frozen=True)
class WindowCounts:
    """Counts of one window, or the sum of several.

    Attributes:
        rows: Requests that were answered.
        missing: Rows with a missing value (NaN).
        out_of_range: Rows with a value outside the input's limits.
        schema_errors: Requests that were refused because of their form; not among the rows.
        features: Per feature of the edges float64 [cells].
        predictions: float64 [classes], of the release's own network; those of a smaller one are left out.
    """

    rows: int
    missing: int
    out_of_range: int
    schema_errors: int
    features: tuple[Array, ...]
    predictions: Array

    @property
    def counted(self) -> int:
        """Rows that every feature has a value for: the smallest sum of counts."""
        return int(min(counts.sum() for counts in self.features))


def read_window(body: bytes, edges: HistogramEdges) -> WindowCounts:
    """Parse a stored report.

    Args:
        body: Serialized DriftReport.
        edges: Edges that the report names.

    Raises:
        WireError: Not a report, other features or cells than the edges have, or more counts than rows.
    """
    report = parse_message(DriftReport, body)
    if len(report.features) != len(edges.features):
        raise WireError("drift.features", expected=f"{len(edges.features)} features", got=len(report.features))
    features = []
    for edge, message in zip(edges.features, report.features, strict=True):
        features.append(_read(message, len(edge.edges) + 1, report.rows, f"drift.features[{edge.name}]"))
    predictions = _read(report.predictions, len(edges.classes), report.rows, "drift.predictions")
    return WindowCounts(
        rows=report.rows,
        missing=report.missing,
        out_of_range=report.out_of_range,
        schema_errors=report.schema_errors,
        features=tuple(features),
        # A smaller network of the ladder predicts otherwise on the same data: that is no drift.
        predictions=predictions if report.rung == 0 else np.zeros_like(predictions),
    )


def add_windows(windows: Sequence[WindowCounts]) -> WindowCounts:
    """The sum of at least one window."""
    return WindowCounts(
        rows=sum(window.rows for window in windows),
        missing=sum(window.missing for window in windows),
        out_of_range=sum(window.out_of_range for window in windows),
        schema_errors=sum(window.schema_errors for window in windows),
        features=tuple(np.sum(counts, axis=0) for counts in zip(*(window.features for window in windows), strict=True)),
        predictions=np.sum([window.predictions for window in windows], axis=0),
    )


def limit_weight(counts: Array, *, rows: int = LARGEST_LOOK) -> Array:
    """``counts``, scaled down to ``rows`` in all if they are more: one device's report weighs only so much."""
    total = float(counts.sum())
    return counts if total <= rows else counts * (rows / total)


def _read(message: HistogramCounts, cells: int, rows: int, field: str) -> Array:
    counts = decode_counts(message, cells=cells, field=field)
    if counts.sum() > rows:
        raise WireError(field, expected=f"at most {rows} counts, one a row", got=int(counts.sum()))
    return counts.astype(np.float64)
