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
from skerry_models.runtime import open_session
from skerry_models.task import Dataset, Float32

GOLDEN = "golden.pb"
FP32 = "fp32"
#: Rows of the golden input.
ROWS = 16
#: Share of the largest golden score that still counts as equal. Float kernels differ in the last bits; INT8 kernels
#: round differently and fuse differently, which moves some values by a quantisation step per layer.
FLOAT_SHARE = 1e-3
INT8_SHARE = 0.05


def golden_rows(dataset: Dataset) -> Float32:
    """Up to :data:`ROWS` rows that cover the classes in turn: float32 [rows, *input]; needs at least one row."""
    by_class = [np.flatnonzero(dataset.y == label) for label in np.unique(dataset.y)]
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(ROWS, len(dataset)):
        chosen += [int(rows[depth]) for rows in by_class if depth < len(rows)]
        depth += 1
    return dataset.take(chosen[:ROWS]).x


def build_golden(variants: Mapping[str, bytes], rows: Float32) -> GoldenSet:
    """Run every variant.

    Args:
        variants: Variant name to ONNX bytes.
        rows: float32 [N, *input], 1 to 64 raw rows.

    Raises:
        BundleError: A variant does not load, or gives an output that is not finite.
    """
    golden = GoldenSet(inputs=[encode_tensor(INPUT, rows)])
    for name, model in variants.items():
        outputs = open_session(model, optimise=False).run([SCORES, FEATURES], {INPUT: rows})
        if not all(np.isfinite(array).all() for array in outputs):
            raise BundleError(GOLDEN, f"variant {name} gives outputs that are not finite")
        tensors = [encode_tensor(SCORES, outputs[0]), encode_tensor(FEATURES, outputs[1])]
        golden.outputs.append(GoldenOutputs(variant=name, tensors=tensors))
    return golden


def golden_tolerance(golden: GoldenSet, variant: str) -> float:
    """Largest absolute difference from the golden outputs that still counts as equal.

    Raises:
        BundleError: The set has no outputs of that variant.
    """
    tensors = _outputs(golden, variant)
    if variant == FP32:
        largest = max(float(np.abs(array).max()) for array in tensors.values())
        return FLOAT_SHARE * max(1.0, largest)
    return INT8_SHARE * max(1.0, float(np.abs(tensors[SCORES]).max()))


def check_golden(golden: GoldenSet, variant: str, model: bytes) -> float:
    """Run a variant on the golden inputs.

    Returns:
        Largest absolute difference.

    Raises:
        BundleError: The difference is above the tolerance, or the variant does not run.
    """
    expected, tolerance = _outputs(golden, variant), golden_tolerance(golden, variant)
    feed = {tensor.name: decode_tensor(tensor) for tensor in golden.inputs}
    names = list(expected)
    worst = 0.0
    for name, got in zip(names, open_session(model).run(names, feed), strict=True):
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
