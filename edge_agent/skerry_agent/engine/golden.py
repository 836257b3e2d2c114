"""The golden check: a loaded model must reproduce the outputs that came with the release, or it never answers.

It catches what no hash can: a runtime, kernel or accelerator that computes something else on this very device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skerry_agent.engine.backend import Floats
from skerry_contract.errors import WireError
from skerry_contract.tensors import decode_tensor
from skerry_contract.v1.release_pb2 import GoldenSet
from skerry_contract.wire import parse_message

#: Largest golden.pb (bytes).
GOLDEN_BYTES = 64 << 20


@dataclass(frozen=True)
class Golden:
    """Parsed golden.pb.

    Attributes:
        x: float32 [N, ...], N >= 1: the inputs.
        outputs: Variant to output name to float32 [N, ...].
    """

    x: Floats
    outputs: dict[str, dict[str, Floats]]


@dataclass(frozen=True)
class GoldenVerdict:
    """Result of a check.

    Attributes:
        passed: Whether every output is within the tolerance.
        worst: Largest absolute difference over all outputs; infinity for a NaN or a wrong shape.
        detail: What failed; empty if nothing did.
    """

    passed: bool
    worst: float
    detail: str


def parse_golden(data: bytes, *, input_name: str) -> Golden:
    """Parse golden.pb.

    Args:
        data: From the bundle.
        input_name: The data input of the manifest.

    Raises:
        WireError: Broken, without inputs, or not float32.
    """
    message = parse_message(GoldenSet, data, limit=GOLDEN_BYTES)
    inputs = {tensor.name: tensor for tensor in message.inputs}
    if set(inputs) != {input_name}:
        raise WireError("golden.inputs", expected=f"only {input_name}", got=sorted(inputs))
    x = _floats(decode_tensor(inputs[input_name], limit=GOLDEN_BYTES), f"golden.inputs[{input_name}]")
    if x.ndim < 2 or x.shape[0] < 1:
        raise WireError(f"golden.inputs[{input_name}].shape", expected="[N, ...] with N >= 1", got=x.shape)
    outputs = {
        entry.variant: {
            tensor.name: _floats(decode_tensor(tensor, limit=GOLDEN_BYTES), f"golden.outputs[{entry.variant}]")
            for tensor in entry.tensors
        }
        for entry in message.outputs
    }
    return Golden(x, outputs)


def check_golden(
    run: Callable[[Floats], tuple[Floats, ...]],
    golden: Golden,
    *,
    variant: str,
    outputs: tuple[str, ...],
    tolerance: float,
    maximum_batch: int,
) -> GoldenVerdict:
    """Run the golden inputs row by row, as devices ask, and in batches; compare with the recorded outputs.

    Args:
        run: ``Runner.run``; may raise BackendError, which passes through.
        golden: What to reproduce.
        variant: Whose outputs.
        outputs: Names in the order in which ``run`` returns them.
        tolerance: Largest absolute difference that counts as equal, >= 0.
        maximum_batch: Largest batch to run.
    """
    expected = golden.outputs.get(variant)
    if expected is None:
        return GoldenVerdict(False, float("inf"), f"golden.pb has no outputs of variant {variant}")
    missing = [name for name in outputs if name not in expected]
    if missing:
        return GoldenVerdict(False, float("inf"), f"golden.pb has no output {missing[0]} of variant {variant}")
    worst = 0.0
    rows = golden.x.shape[0]
    for batch in dict.fromkeys((1, min(rows, maximum_batch))):
        for start in range(0, rows, batch):
            got = run(golden.x[start : start + batch])
            for name, values in zip(outputs, got, strict=True):
                wanted = expected[name][start : start + batch]
                if values.shape != wanted.shape:
                    detail = f"{name} has shape {values.shape}, recorded was {wanted.shape}"
                    return GoldenVerdict(False, float("inf"), detail)
                difference = float(np.max(np.abs(values - wanted), initial=0.0))
                if not difference <= tolerance:  # also when it is NaN
                    difference = difference if difference == difference else float("inf")
                    detail = f"{name} of row {start} differs by {difference:g}, more than {tolerance:g}"
                    return GoldenVerdict(False, difference, detail)
                worst = max(worst, difference)
    return GoldenVerdict(True, worst, "")


def _floats(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], field: str) -> Floats:
    if array.dtype != np.float32:
        raise WireError(f"{field}.dtype", expected="float32", got=array.dtype.name)
    return array.astype(np.float32, copy=False)
