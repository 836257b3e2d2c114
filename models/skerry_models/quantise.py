"""Static INT8 from one calibration: the canonical form and the x86 form.

Canonical (what travels, as TensorRT wants it): symmetric int8 activations and per-channel int8 weights, explicit
Q/DQ, float biases. x86: asymmetric uint8 activations, weights of 7 bits, because processors without VNNI add pairs of
uint8 x int8 products in 16 bits and saturate with 8 (onnxruntime's guide to quantisation). Only the path to
"scores" is quantised, from its first convolution or matrix product on: preprocessing and drift features stay float32.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from skerry_models.activation_ranges import Ranges, measure_ranges, with_range_outputs, write_calibration_cache
from skerry_models.canonical_lint import check_canonical
from skerry_models.errors import ExportError
from skerry_models.export import SCORES
from skerry_models.joint_graph import quiet_export
from skerry_models.onnx_graph import ancestors, check_plain, remove_unused, serialise, strip_origin
from skerry_models.task import Float32

INT8_QDQ = "infer.int8-qdq.onnx"
INT8_X86 = "infer.int8-x86.onnx"
#: Operators that the quantised part starts with.
_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class QuantisedGraphs:
    """Bytes of both INT8 forms.

    Attributes:
        canonical: infer.int8-qdq.onnx, S8S8.
        x86: infer.int8-x86.onnx, U8S8.
    """

    canonical: bytes
    x86: bytes


def quantise(infer: bytes, calibration: Float32) -> QuantisedGraphs:
    """Make both INT8 forms.

    Args:
        infer: Bytes of infer.onnx.
        calibration: float32 [N, *input], raw rows that span what devices see; at least 1, a few hundred are enough.

    Raises:
        ExportError: Nothing to quantise, or the canonical form breaks a rule of its lint.
        ValueError: No calibration rows.
    """
    probe = with_range_outputs(infer, calibrated_tensors(infer), INT8_QDQ)
    return quantise_with(infer, measure_ranges(probe, calibration).ranges)


def quantise_with(infer: bytes, ranges: Ranges) -> QuantisedGraphs:
    """Make both INT8 forms from ranges that somebody measured, devices for example.

    Args:
        infer: Bytes of infer.onnx.
        ranges: Of each of :func:`calibrated_tensors`.

    Raises:
        ExportError: Nothing to quantise, a range is missing, or the canonical form breaks a rule of its lint.
    """
    model = onnx.load_from_string(infer)
    missing = [name for name in calibrated_tensors(infer) if name not in ranges]
    if missing:
        raise ExportError(INT8_QDQ, f"no range of {', '.join(missing[:5])}")
    excluded = float_nodes(model.graph)
    with tempfile.TemporaryDirectory(prefix="skerry-int8-") as folder, quiet_export():
        canonical, x86 = _quantise_files(model, ranges, excluded, Path(folder))
    check_canonical(canonical, INT8_QDQ)
    check_plain(x86, INT8_X86)
    return QuantisedGraphs(serialise(canonical), serialise(x86))


def calibrated_tensors(infer: bytes) -> list[str]:
    """Names of the activations whose ranges quantisation needs, in graph order.

    Raises:
        ExportError: Nothing to quantise.
    """
    graph = onnx.load_from_string(infer).graph
    constants, kept = {tensor.name for tensor in graph.initializer}, set(float_nodes(graph))
    nodes = [node for node in graph.node if node.name not in kept]
    if not nodes:
        raise ExportError(INT8_QDQ, f"the path to {SCORES} has none of {', '.join(_HEAVY)}")
    names = [name for node in nodes for name in [*node.input, *node.output] if name and name not in constants]
    return list(dict.fromkeys(names))


def float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that stay float32: all but the scores path from its first heavy operator on."""
    quantised: set[str] = set()
    values: set[str] = set()
    for node in ancestors(graph, SCORES):
        if node.op_type in _HEAVY or values & set(node.input):
            quantised.add(node.name)
            values |= set(node.output)
    return [node.name for node in graph.node if node.name not in quantised]


def _quantise_files(
    model: onnx.ModelProto, ranges: Ranges, excluded: list[str], folder: Path
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    source, cache = folder / "source.onnx", folder / "calibration"
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), source)
    write_calibration_cache(ranges, cache)
    shared = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.MinMax,
        "calibration_cache_path": str(cache),
        "nodes_to_exclude": excluded,
    }
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    results = []
    forms = (
        ("canonical", {"activation_type": QuantType.QInt8, "extra_options": symmetric}),
        ("x86", {"activation_type": QuantType.QUInt8, "reduce_range": True}),
    )
    for name, settings in forms:
        target = folder / f"{name}.onnx"
        quantize_static(str(source), str(target), None, **shared, **settings)
        quantised = onnx.load(target)
        drop_needless_pairs(quantised.graph)
        strip_origin(quantised)
        del quantised.graph.value_info[:]
        _drop_foreign_opsets(quantised)
        results.append(quantised)
    return results[0], results[1]


def drop_needless_pairs(graph: onnx.GraphProto) -> None:
    """Remove Q/DQ pairs that cost accuracy and gain nothing, in place.

    Before an activation, the quantiser spends the range on values that the activation removes, and keeps runtimes
    from fusing it into the operator before. Before the output, a pair only rounds the scores.
    """
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    for dequantise in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantise_node = producers.get(dequantise.input[0])
        if quantise_node is None or len(readers[dequantise.input[0]]) != 1:
            continue
        source = producers.get(quantise_node.input[0])
        if source is None or source.op_type not in _HEAVY or len(readers[quantise_node.input[0]]) != 1:
            continue
        following = readers.get(dequantise.output[0], [])
        if dequantise.output[0] in outputs and not following:
            source.output[0] = dequantise.output[0]
        elif dequantise.output[0] not in outputs and [node.op_type for node in following] in (["Relu"], ["Clip"]):
            following[0].input[0] = source.output[0]
        else:
            continue
        graph.node.remove(quantise_node)
        graph.node.remove(dequantise)
    remove_unused(graph)


def _drop_foreign_opsets(model: onnx.ModelProto) -> None:
    """The quantiser imports Microsoft domains that QDQ graphs do not use."""
    used = {node.domain for node in model.graph.node} | {""}
    entries = [(entry.domain, entry.version) for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in entries)
