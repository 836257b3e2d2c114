"""Golden inputs and outputs: how a device proves that its own engine runs the model that was released.

Golden outputs come from the graph as it is written, without rewriting and without INT8 kernels, so that they do not
depend on the processor that made them (U8S8 kernels saturate on some).
Tolerances follow from the golden outputs themselves, so that they can be computed again from ``golden.pb`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from skerry_contract.tensors import decode_tensor, encode_tensor
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet
from skerry_models.errors import BundleError
from skerry_models.export import FEATURES, INPUT, SCORES
from skerry_models.forms import FP32, form_of
from skerry_models.runtime import open_session
from skerry_models.task import Dataset, Float32

GOLDEN = "golden.pb"
#: Most rows of the golden input, and bytes that they may take when there are more than :data:`FEWEST_ROWS`.
ROWS = 16
ROW_BYTES = 2 << 20
FEWEST_ROWS = 2


def golden_rows(dataset: Dataset) -> Float32:
    """A few rows that cover the classes in turn: float32 [rows, *input], 2 to :data:`ROWS`; needs at least one row."""
    wanted = max(FEWEST_ROWS, min(ROWS, ROW_BYTES // max(1, dataset.x[:1].nbytes)))
    by_class = [np.flatnonzero(dataset.y == label) for label in np.unique(dataset.y)]
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(wanted, len(dataset)):
        chosen += [int(rows[depth]) for rows in by_class if depth < len(rows)]
        depth += 1
    return dataset.take(chosen[:wanted]).x


def start_golden(rows: Float32) -> GoldenSet:
    """A set without outputs: float32 [N, *input], 1 to 64 raw rows."""
    return GoldenSet(inputs=[encode_tensor(INPUT, rows)])


def add_golden(golden: GoldenSet, variant: str, model: bytes) -> None:
    """Run a variant and record what it gives.

    Raises:
        BundleError: It does not load, or gives an output that is not finite.
    """
    feed = {tensor.name: decode_tensor(tensor) for tensor in golden.inputs}
    outputs = open_session(model, optimise=False).run([SCORES, FEATURES], feed)
    if not all(np.isfinite(array).all() for array in outputs):
        raise BundleError(GOLDEN, f"variant {variant} gives outputs that are not finite")
    tensors = [encode_tensor(SCORES, outputs[0]), encode_tensor(FEATURES, outputs[1])]
    golden.outputs.append(GoldenOutputs(variant=variant, tensors=tensors))


def build_golden(variants: Mapping[str, bytes], rows: Float32) -> GoldenSet:
    """Run every variant.

    Args:
        variants: Variant name to ONNX bytes.
        rows: float32 [N, *input], 1 to 64 raw rows.

    Raises:
        BundleError: A variant does not load, or gives an output that is not finite.
    """
    golden = start_golden(rows)
    for name, model in variants.items():
        add_golden(golden, name, model)
    return golden


def golden_scores(golden: GoldenSet, variant: str) -> Float32:
    """Recorded scores of a variant, float32 [N, classes]; raises BundleError."""
    return _outputs(golden, variant)[SCORES]


def golden_tolerance(golden: GoldenSet, variant: str) -> float:
    """Largest absolute difference from the golden outputs that still counts as equal.

    Raises:
        BundleError: The set has no outputs of that variant.
    """
    tensors, form = _outputs(golden, variant), form_of(variant)
    compared = tensors.values() if form.name == FP32 else [tensors[SCORES]]
    return form.tolerance * max(1.0, *(float(np.abs(array).max()) for array in compared))


def check_golden(golden: GoldenSet, variant: str, model: bytes, *, optimise: bool = True) -> float:
    """Run a variant on the golden inputs, by this machine's kernels or, with ``optimise`` off, as it is written.

    Returns:
        Largest absolute difference.

    Raises:
        BundleError: The difference is above the tolerance, or the variant does not run.
    """
    expected, tolerance = _outputs(golden, variant), golden_tolerance(golden, variant)
    feed = {tensor.name: decode_tensor(tensor) for tensor in golden.inputs}
    names = list(expected)
    worst = 0.0
    for name, got in zip(names, open_session(model, optimise=optimise).run(names, feed), strict=True):
        difference = float(np.abs(got.astype(np.float32) - expected[name]).max())
        if not difference <= tolerance:
            raise BundleError(
                GOLDEN, f"{name} of variant {variant} is off by {difference:.4g}, more than {tolerance:.4g}"
            )
        worst = max(worst, difference)
    return worst


def _outputs(golden: GoldenSet, variant: str) -> dict[str, Float32]:
    for outputs in golden.outputs:
        if outputs.variant == variant:
            return {tensor.name: decode_tensor(tensor).astype(np.float32) for tensor in outputs.tensors}
    raise BundleError(GOLDEN, f"no golden outputs of variant {variant}")
