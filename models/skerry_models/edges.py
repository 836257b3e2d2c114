"""drift_edges.pb: where a release expects its inputs to lie.

Edges come from reference rows through the same graph that devices run. A release that follows another keeps the
edges of its parent, so that windows of both can be compared; only the reference counts are counted again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skerry_contract.errors import WireError
from skerry_contract.histogram import Counts, Floats, build_edges, check_edges, count_values, encode_counts, parse_edges
from skerry_contract.v1.telemetry_pb2 import FeatureEdges, HistogramEdges
from skerry_models.errors import BundleError
from skerry_models.evaluation import in_batches
from skerry_models.export import FEATURES, INPUT, SCORES
from skerry_models.runtime import open_session
from skerry_models.task import Float32, Task

DRIFT_EDGES = "drift_edges.pb"
#: Cells of equal probability per feature.
CELLS = 10
#: Largest softmax probability of a row.
CONFIDENCE_EDGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
#: Microseconds, about a third of a decade apart; the last marks the 10 ms budget and what is beyond.
LATENCY_EDGES = (20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0)


def reference_edges(task: Task, infer: bytes, reference: Float32, parent: bytes | None) -> bytes:
    """Edges and reference counts of a release.

    Args:
        task: Names of features and classes.
        infer: Bytes of infer.onnx.
        reference: float32 [N, *input], raw rows that stand for normal use; at least 1.
        parent: drift_edges.pb of the parent release, or None for a first release.

    Returns:
        Serialised HistogramEdges.

    Raises:
        BundleError: The parent's edges are broken, or are of other features or classes.
        ValueError: No reference rows.
    """
    if not len(reference):
        raise ValueError("the reference needs at least one row")
    features, predictions = observe(infer, reference, len(task.classes))
    columns = {name: features[:, index] for index, name in enumerate(task.feature_names)}
    if parent is None:
        edges = build_edges(
            columns,
            cells=CELLS,
            classes=task.classes,
            confidence_edges=CONFIDENCE_EDGES,
            latency_edges=LATENCY_EDGES,
            predictions=predictions,
        )
    else:
        edges = _recount(parent, columns, task.classes, predictions)
    data: bytes = edges.SerializeToString(deterministic=True)
    return data


def observe(infer: bytes, rows: Float32, classes: int) -> tuple[Floats, Counts]:
    """Drift features float64 [N, F] and prediction counts int64 [classes] of raw rows."""
    session = open_session(infer)
    predictions = np.zeros(classes, dtype=np.int64)

    def forward(batch: Float32) -> Float32:
        scores, features = session.run([SCORES, FEATURES], {INPUT: np.ascontiguousarray(batch)})
        predictions[:] += np.bincount(scores.argmax(axis=1), minlength=classes)
        return features.astype(np.float32, copy=False)

    return in_batches(forward, rows).astype(np.float64), predictions


def _recount(parent: bytes, columns: dict[str, Floats], classes: Sequence[str], predictions: Counts) -> HistogramEdges:
    try:
        known = parse_edges(parent)
    except WireError as error:
        raise BundleError(DRIFT_EDGES, f"the parent's edges are broken: {error}") from error
    names = [feature.name for feature in known.features]
    if names != list(columns) or list(known.classes) != list(classes):
        raise BundleError(DRIFT_EDGES, f"the parent's edges are of features {names} and classes {list(known.classes)}")
    edges = HistogramEdges(
        classes=known.classes,
        confidence_edges=known.confidence_edges,
        latency_edges=known.latency_edges,
        reference_rows=max(len(values) for values in columns.values()),
        reference_predictions=encode_counts(int(count) for count in predictions),
    )
    for feature in known.features:
        values = columns[feature.name]
        counts = count_values(values[np.isfinite(values)], np.array(feature.edges))
        edges.features.append(
            FeatureEdges(
                name=feature.name, edges=feature.edges, reference=encode_counts(int(count) for count in counts)
            )
        )
    return check_edges(edges)
