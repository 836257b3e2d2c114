"""Ranges of activations: the graph that measures them, the measuring, and the form that the quantiser reads.

One graph serves the cloud and the devices: ``calibrate.onnx`` is ``evaluate.onnx`` (parameters are inputs, so a device
can measure parameters that no release has yet) with the smallest and largest value of every activation that INT8 needs
as its outputs. Because batch normalisation is folded in infer.onnx and not in it, a build proves that both graphs give
the same ranges. The wire form and the merging are :mod:`skerry_contract.calibration`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from skerry_contract.calibration import MAXIMUM_PREFIX, MINIMUM_PREFIX, TensorRanges, merge_ranges, ranges_from_outputs
from skerry_contract.tensors import Array
from skerry_models.errors import ExportError
from skerry_models.export import INPUT
from skerry_models.onnx_graph import remove_unused, serialise
from skerry_models.parameters import encode_state
from skerry_models.runtime import open_session
from skerry_models.task import Float32

CALIBRATE = "calibrate.onnx"
#: Rows per run, and bytes of input that a run of more than one row may have.
_BATCH_ROWS = 32
_BATCH_BYTES = 4 << 20
#: Largest difference between the ranges of calibrate.onnx and infer.onnx, as a share of the largest magnitude.
_PARITY = 1e-3

Ranges = Mapping[str, tuple[float, float]]


def with_range_outputs(model: bytes, tensors: Sequence[str], artifact: str = CALIBRATE) -> bytes:
    """A graph whose outputs are the smallest and largest value of each of ``tensors``, over batch and all.

    Args:
        model: Any inference graph.
        tensors: Names of float32 values of it; inputs of the graph are values as well.
        artifact: For errors.

    Raises:
        ExportError: A value is not there.
    """
    graph_model = onnx.load_from_string(model)
    graph = graph_model.graph
    values = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    missing = sorted(set(tensors) - values)
    if missing or not tensors:
        raise ExportError(artifact, f"the graph has no values {', '.join(missing[:5]) or 'to calibrate'}")
    del graph.output[:]
    for name in sorted(set(tensors)):
        for prefix, operator in ((MINIMUM_PREFIX, "ReduceMin"), (MAXIMUM_PREFIX, "ReduceMax")):
            output = prefix + name
            graph.node.append(helper.make_node(operator, [name], [output], name=f"{operator}_{name}", keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    remove_unused(graph)
    return serialise(graph_model)


def measure_ranges(model: bytes, rows: Float32, state: Mapping[str, Array] | None = None) -> TensorRanges:
    """Run a graph with range outputs over rows.

    Args:
        model: From :func:`with_range_outputs`.
        rows: float32 [N, *input], raw rows, at least 1.
        state: Parameters, for a graph that takes them as inputs.

    Raises:
        ValueError: No rows.
        WireError: A range is not finite.
    """
    if not len(rows):
        raise ValueError("calibration needs at least one row")
    session, proto = open_session(model), onnx.load_from_string(model)
    names = [output.name for output in proto.graph.output]
    wanted = {value.name for value in proto.graph.input}
    parameters = {name: array for name, array in (state or {}).items() if name in wanted}
    graph_sha256, parameters_sha256 = hashlib.sha256(model).digest(), hashlib.sha256(encode_state(state or {})).digest()
    batch = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, rows[:1].nbytes)))
    parts = []
    for start in range(0, len(rows), batch):
        x = np.ascontiguousarray(rows[start : start + batch])
        outputs = dict(zip(names, session.run(names, {INPUT: x, **parameters}), strict=True))
        part = ranges_from_outputs(outputs, rows=len(x), graph_sha256=graph_sha256, parameters_sha256=parameters_sha256)
        parts.append(part)
    merged = merge_ranges(parts)
    return TensorRanges(graph_sha256, parameters_sha256, merged.ranges, rows=len(rows))


def check_same_ranges(got: Ranges, expected: Ranges, artifact: str = CALIBRATE) -> None:
    """Pass if two graphs measured the same about the same rows.

    Raises:
        ExportError: A tensor is missing, or an end is off by more than a thousandth of the largest magnitude.
    """
    for name, ends in expected.items():
        limit = _PARITY * max(1.0, *map(abs, ends))
        off = max(abs(a - b) for a, b in zip(got.get(name, (np.inf, np.inf)), ends, strict=True))
        if not off <= limit:
            raise ExportError(artifact, f"the range of {name} is {got.get(name)}, expected {ends}")


def write_calibration_cache(ranges: Ranges, path: Path) -> None:
    """Write ranges as onnxruntime's calibration cache (version of its quantiser: 1.31), method MinMax."""

    def scalar(value: float) -> dict[str, object]:
        return {"data": value, "dtype": "float32", "CLS": "numpy.array"}

    tensors = {
        name: {"lowest": scalar(least), "highest": scalar(most), "CLS": "TensorData"}
        for name, (least, most) in ranges.items()
    }
    document = {
        "CLS": "TensorsData",
        "data": tensors,
        "calibration_method": {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"},
        "smooth_quant": False,
    }
    path.write_text(json.dumps(document))
