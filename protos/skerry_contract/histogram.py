"""Fixed-edge histograms: how drift crosses the wire in some 28 bytes a feature.

A feature with E edges has E + 1 cells; a value v lies in cell ``number of edges < v`` (left-open cells, as
``numpy.searchsorted(edges, v, side="left")``). Counts travel as unsigned LEB128 varints.
Equal-probability cells make the population stability index exact and the counts summable over devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from skerry_contract.errors import WireError
from skerry_contract.limits import CELL_COUNT, CLASSES, FEATURES, HISTOGRAM_CELLS
from skerry_contract.v1.telemetry_pb2 import FeatureEdges, HistogramCounts, HistogramEdges
from skerry_contract.wire import parse_message

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def encode_counts(counts: Iterable[int]) -> HistogramCounts:
    """Pack counts (each 0 to 2**53) as varints.

    Raises:
        ValueError: A count is negative or too large, or there are too many cells.
    """
    out = bytearray()
    cells = 0
    for count in counts:
        value = int(count)
        if not 0 <= value <= CELL_COUNT:
            raise ValueError(f"count {value} is outside 0 to {CELL_COUNT}")
        cells += 1
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    if cells > max(HISTOGRAM_CELLS, CLASSES):
        raise ValueError(f"{cells} cells are more than {max(HISTOGRAM_CELLS, CLASSES)}")
    return HistogramCounts(counts=bytes(out))


def decode_counts(message: HistogramCounts, *, cells: int, field: str = "counts") -> Counts:
    """Unpack counts.

    Args:
        message: From the wire, not trusted.
        cells: How many cells the edges ask for.
        field: Name in errors.

    Raises:
        WireError: Another number of cells, a count that is too large, or a varint cut short.
    """
    data = message.counts
    if len(data) > cells * 8:
        raise WireError(field, expected=f"at most {cells * 8} bytes", got=f"{len(data)} bytes")
    values: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 49:
                raise WireError(field, expected="varints of at most 8 bytes", got="a longer one")
            continue
        if value > CELL_COUNT:
            raise WireError(field, expected=f"counts up to {CELL_COUNT}", got=value)
        values.append(value)
        value = shift = 0
    if shift:
        raise WireError(field, expected="complete varints", got="a varint cut short")
    if len(values) != cells:
        raise WireError(field, expected=f"{cells} cells", got=f"{len(values)} cells")
    return np.array(values, dtype=np.int64)


def equal_probability_edges(values: Floats, *, cells: int) -> Floats:
    """Edges that give each of ``cells`` cells about the same share of ``values``.

    Args:
        values: float64 [N], finite, N >= 1.
        cells: 2 to 256 wanted cells.

    Returns:
        float64 [E], strictly increasing, 1 <= E <= cells - 1; fewer where values repeat (atoms).

    Raises:
        ValueError: No values, a value that is not finite, or a bad number of cells.
    """
    if not 2 <= cells <= HISTOGRAM_CELLS:
        raise ValueError(f"cells must be 2 to {HISTOGRAM_CELLS}, got {cells}")
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be a vector with at least one element, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    probabilities = np.arange(1, cells) / cells
    return np.unique(np.quantile(values, probabilities).astype(np.float64))


def count_values(values: Floats, edges: Floats) -> Counts:
    """Counts of ``values`` (float64 [N], no NaN) between ``edges`` (float64 [E]): int64 [E + 1]."""
    cells = np.searchsorted(edges, values, side="left")
    return np.bincount(cells, minlength=edges.size + 1).astype(np.int64)


def edges_digest(serialized: bytes) -> bytes:
    """SHA-256 of drift_edges.pb as it lies in the bundle: reports name it, so counts meet their edges."""
    return hashlib.sha256(serialized).digest()


def build_edges(
    features: dict[str, Floats],
    *,
    cells: int,
    classes: Sequence[str],
    confidence_edges: Sequence[float],
    latency_edges: Sequence[float],
    predictions: Counts,
) -> HistogramEdges:
    """Edges and reference counts from reference data.

    Args:
        features: Feature name to float64 [N]; NaN rows are left out feature by feature.
        cells: Wanted cells per feature.
        classes: Class names, in the order of the scores.
        confidence_edges: Strictly increasing, between 0 and 1.
        latency_edges: Strictly increasing, microseconds.
        predictions: int64 [classes], how often each class is predicted on the reference data.
    """
    message = HistogramEdges(
        classes=classes,
        confidence_edges=confidence_edges,
        latency_edges=latency_edges,
        reference_rows=max((len(values) for values in features.values()), default=0),
        reference_predictions=encode_counts(int(count) for count in predictions),
    )
    for name, values in features.items():
        finite = values[np.isfinite(values)]
        edges = equal_probability_edges(finite, cells=cells)
        counts = count_values(finite, edges)
        message.features.append(
            FeatureEdges(name=name, edges=edges.tolist(), reference=encode_counts(int(count) for count in counts))
        )
    check_edges(message)
    return message


def check_edges(message: HistogramEdges) -> HistogramEdges:
    """Return ``message`` if every list of edges is usable.

    Raises:
        WireError: Too many features or cells, edges that do not increase, or counts that do not fit.
    """
    if not 1 <= len(message.features) <= FEATURES:
        raise WireError("edges.features", expected=f"1 to {FEATURES}", got=len(message.features))
    if not 1 <= len(message.classes) <= CLASSES:
        raise WireError("edges.classes", expected=f"1 to {CLASSES}", got=len(message.classes))
    named = [(f"edges.features[{feature.name}]", list(feature.edges)) for feature in message.features]
    named += [("edges.confidence_edges", list(message.confidence_edges))]
    named += [("edges.latency_edges", list(message.latency_edges))]
    for field, edges in named:
        if not 1 <= len(edges) < HISTOGRAM_CELLS:
            raise WireError(field, expected=f"1 to {HISTOGRAM_CELLS - 1} edges", got=len(edges))
        array = np.array(edges)
        if not np.isfinite(array).all() or not (np.diff(array) > 0).all():
            raise WireError(field, expected="finite, strictly increasing edges", got=edges[:8])
    for feature in message.features:
        decode_counts(
            feature.reference, cells=len(feature.edges) + 1, field=f"edges.features[{feature.name}].reference"
        )
    decode_counts(message.reference_predictions, cells=len(message.classes), field="edges.reference_predictions")
    return message


def parse_edges(data: bytes) -> HistogramEdges:
    """Parse and check drift_edges.pb; raises WireError."""
    return check_edges(parse_message(HistogramEdges, data, limit=1 << 20))
