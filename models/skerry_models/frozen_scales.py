"""Scales and zero points that stay over releases, so that the INT8 weights of consecutive rounds can be subtracted.

A weight that moves less than half a step keeps its byte, and one that moves a step moves its byte by one, if the step
is the same. Fresh scales follow the largest weight of each channel and would move every byte. So a release takes over
the scales of the one before it, weights and activations alike, as long as its graph is the same; the weights are
quantised again from their float32 values, so that no error adds up over releases.

What frozen scales cost is measured, not assumed: :func:`choose_scales` goes back to fresh ones when too many weights
lie beyond the range of their scale, or when a form would not pass the gate of INT8 accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from skerry_contract.tensors import Array
from skerry_models.evaluation import evaluate_onnx
from skerry_models.gates import GateLimits
from skerry_models.onnx_graph import serialise
from skerry_models.quantise import QuantisedGraphs
from skerry_models.task import Dataset

#: Largest share of the weights that frozen scales may cut off. The largest weight of every channel lies at the edge of
#: its range, so that a few cross it in every round, by a step or two; with more of them the network has moved away.
CLIPPED_SHARE = 0.01
#: Largest magnitude of a quantised weight by form; the x86 form has weights of 7 bits.
_LARGEST = {"canonical": 127, "x86": 64}
#: Suffix that onnxruntime gives to the quantised form of a weight or bias.
_QUANTISED = "_quantized"


@dataclass(frozen=True)
class ChosenScales:
    """Both INT8 forms, and where their scales come from.

    Attributes:
        graphs: The forms.
        kept: Whether the scales are those of the earlier release.
        detail: Why, for people; depends on nothing but the inputs.
        clipped_share: Share of the weights beyond the range of the kept scales, the worse form; 0 for fresh scales.
    """

    graphs: QuantisedGraphs
    kept: bool
    detail: str
    clipped_share: float = 0.0


def choose_scales(
    fresh: QuantisedGraphs, infer: bytes, earlier: QuantisedGraphs | None, holdout: Dataset
) -> ChosenScales:
    """Take over the scales of an earlier release if that costs nothing that the gates would mind.

    Args:
        fresh: Both forms with scales of their own.
        infer: infer.onnx that they were made from.
        earlier: Both forms of the earlier release; None if there is none.
        holdout: Rows that the accuracy is measured on.
    """
    if earlier is None:
        return ChosenScales(fresh, False, "no earlier release")
    try:
        canonical = freeze_scales(fresh.canonical, infer, earlier.canonical, largest=_LARGEST["canonical"])
        x86 = freeze_scales(fresh.x86, infer, earlier.x86, largest=_LARGEST["x86"])
    except ScalesError as error:
        return ChosenScales(fresh, False, error.reason)
    clipped = max(form.clipped / max(form.weights, 1) for form in (canonical, x86))
    if clipped > CLIPPED_SHARE:
        return ChosenScales(fresh, False, f"{clipped:.2%} of the weights lie beyond the earlier scales")
    graphs = QuantisedGraphs(canonical.model, x86.model)
    worst = min(evaluate_onnx(model, holdout).accuracy for model in (graphs.canonical, graphs.x86))
    accuracy = evaluate_onnx(infer, holdout).accuracy
    if worst < accuracy - GateLimits().int8_loss:
        return ChosenScales(fresh, False, f"accuracy {worst:.4f} with the earlier scales against {accuracy:.4f}")
    return ChosenScales(graphs, True, f"{clipped:.2%} of the weights cut off", clipped)


class ScalesError(Exception):
    """A graph that cannot take over the scales of another one.

    Attributes:
        reason: Why not, for people.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class FrozenGraph:
    """A quantised graph with the scales of another one.

    Attributes:
        model: Its bytes.
        weights: Quantised weights in it, biases aside.
        clipped: Those of them that lie beyond the range of their scale and were cut off.
    """

    model: bytes
    weights: int
    clipped: int


def freeze_scales(fresh: bytes, infer: bytes, kept: bytes, *, largest: int) -> FrozenGraph:
    """Quantise with the scales of an earlier release.

    Args:
        fresh: The graph with scales of its own, from the quantiser: what is kept of it is the structure.
        infer: infer.onnx that ``fresh`` was made from: the float32 values.
        kept: The same form of the earlier release.
        largest: Largest magnitude of a quantised weight in this form (127, or 64 for weights of 7 bits).

    Raises:
        ScalesError: The graphs differ in more than values, or ``kept`` is no ONNX model.
    """
    model = onnx.load_from_string(fresh)
    graph, values = model.graph, _initializers(onnx.load_from_string(infer).graph)
    try:
        old_graph = onnx.load_from_string(kept).graph
    except Exception as error:
        # protobuf's DecodeError has no stable import path across its implementations.
        raise ScalesError(f"the earlier graph does not parse: {error}") from error
    own, old = _initializers(graph), _initializers(old_graph)
    _check_same_structure(graph, old_graph)
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for name in sorted({name for node in pairs for name in node.input[1:]}):
        if name not in own:
            raise ScalesError(f"{name} is computed, not constant")
        own[name].CopyFrom(old[name])
    weights = clipped = 0
    for node in pairs:
        if node.input[0] not in own:
            continue
        count, beyond = _quantise_again(node, own, values, largest)
        weights, clipped = weights + count, clipped + beyond
    return FrozenGraph(serialise(model), weights, clipped)


def _initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _check_same_structure(graph: onnx.GraphProto, old: onnx.GraphProto) -> None:
    def outline(of: onnx.GraphProto) -> list[bytes]:
        return [part.SerializeToString(deterministic=True) for part in [*of.input, *of.output, *of.node]]

    def table(of: onnx.GraphProto) -> list[tuple[str, int, tuple[int, ...]]]:
        return [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in of.initializer]

    if outline(graph) != outline(old) or table(graph) != table(old):
        raise ScalesError("the earlier graph has another structure")


def _quantise_again(
    node: onnx.NodeProto, own: Mapping[str, onnx.TensorProto], values: Mapping[str, onnx.TensorProto], largest: int
) -> tuple[int, int]:
    """Write the integers of one constant anew; returns how many weights it has, and how many were cut off."""
    tensor = own[node.input[0]]
    source = values.get(tensor.name.removesuffix(_QUANTISED))
    plain = source is not None and list(source.dims) == list(tensor.dims) and source.data_type == onnx.TensorProto.FLOAT
    if source is None or not plain or not tensor.HasField("raw_data"):
        raise ScalesError(f"{tensor.name} does not come from one float32 constant")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    scale, zero = (numpy_helper.to_array(own[name]) for name in node.input[1:3])
    steps = _steps(node, numpy_helper.to_array(source), scale)
    bias = dtype == np.int32
    least, most = (np.iinfo(np.int32).min, np.iinfo(np.int32).max) if bias else (-largest, largest)
    beyond = int(((steps < least) | (steps > most)).sum())
    if zero.any():
        raise ScalesError(f"{tensor.name} has a zero point that is not 0")
    tensor.raw_data = np.clip(steps, least, most).astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    return (0, beyond) if bias else (steps.size, beyond)


def _steps(node: onnx.NodeProto, value: Array, scale: Array) -> npt.NDArray[np.floating[Any]]:
    """Whole steps of ``scale`` nearest to ``value``; in float32 for weights and float64 for biases, as onnxruntime."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = [1] * value.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    wide = np.float64 if value.ndim == 1 else np.float32
    steps: npt.NDArray[np.floating[Any]] = np.round(value.astype(wide) / scale.reshape(shape).astype(wide))
    return steps
