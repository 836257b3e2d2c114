"""Rules of the canonical INT8 form, so that TensorRT and every lowering pass can rely on it.

Zero points are 0 and int8; no uint8 anywhere; opset at most 25; only the default domain; every dimension but the
batch is static; and between the first Q and "scores" no operator works in float between a DQ and a Q other than as
part of one quantised operator (with its fused activation). Pure: a graph in, findings out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from skerry_models.errors import ExportError
from skerry_models.onnx_graph import ancestors

#: Newest opset that the lowering targets parse.
MAXIMUM_OPSET = 25
#: Activations that runtimes fuse into the operator before them.
_FUSED = ("Relu", "Clip")
_SCORES = "scores"


@dataclass(frozen=True)
class Finding:
    """A broken rule.

    Attributes:
        rule: Short name: "zero-point", "uint8", "opset", "domain", "static-shape", "float-island", "unquantised".
        where: Node or value.
        detail: Expected and found.
    """

    rule: str
    where: str
    detail: str


def check_canonical(model: onnx.ModelProto, artifact: str) -> None:
    """Accept only a clean canonical graph.

    Raises:
        ExportError: With every finding.
    """
    findings = lint_canonical(model)
    if findings:
        text = "; ".join(f"{finding.rule} at {finding.where}: {finding.detail}" for finding in findings[:8])
        raise ExportError(artifact, f"not canonical: {text}")


def lint_canonical(model: onnx.ModelProto) -> list[Finding]:
    """All broken rules of a graph, in graph order; empty when it is canonical."""
    return [*_lint_versions(model), *_lint_shapes(model.graph), *_lint_scales(model.graph), *_lint_islands(model.graph)]


def _lint_versions(model: onnx.ModelProto) -> list[Finding]:
    findings = []
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            findings.append(Finding("domain", entry.domain, "only the default domain is imported"))
        elif entry.version > MAXIMUM_OPSET:
            findings.append(Finding("opset", "model", f"expected at most {MAXIMUM_OPSET}, found {entry.version}"))
    findings += [Finding("domain", n.name, f"operator of {n.domain}") for n in model.graph.node if n.domain]
    return findings


def _lint_shapes(graph: onnx.GraphProto) -> list[Finding]:
    findings = []
    for value in [*graph.input, *graph.output]:
        for position, dimension in enumerate(value.type.tensor_type.shape.dim):
            if position and not dimension.HasField("dim_value"):
                findings.append(Finding("static-shape", value.name, f"dimension {position} is not static"))
    return findings


def _lint_scales(graph: onnx.GraphProto) -> list[Finding]:
    findings = []
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) < 3 or node.input[2] not in constants:
            findings.append(Finding("zero-point", node.name, "expected a constant int8 zero point"))
            continue
        zero = constants[node.input[2]]
        if zero.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16):
            findings.append(Finding("uint8", node.name, f"{node.input[2]} is unsigned"))
        elif np.any(numpy_helper.to_array(zero) != 0):
            findings.append(Finding("zero-point", node.name, f"{node.input[2]} is not 0"))
        scale = constants.get(node.input[1])
        if scale is None or not np.all(numpy_helper.to_array(scale) > 0):
            findings.append(Finding("zero-point", node.name, "expected constant scales above 0"))
    return findings


def _lint_islands(graph: onnx.GraphProto) -> list[Finding]:
    path = ancestors(graph, _SCORES)
    producers = {name: node for node in path for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in path:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    if not any(node.op_type == "QuantizeLinear" for node in path):
        return [Finding("unquantised", _SCORES, "no QuantizeLinear on the path to the scores")]
    behind = _behind_dequantise(path)
    findings = []
    for node in path:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not set(node.input) & behind:
            continue
        for name in node.input:
            producer = producers.get(name)
            fused = node.op_type in _FUSED and producer is not None and producer.op_type not in _FUSED
            if producer is not None and producer.op_type != "DequantizeLinear" and not fused:
                findings.append(Finding("float-island", node.name, f"{name} comes from {producer.op_type}, not DQ"))
        for name in node.output:
            readers = [reader.op_type for reader in consumers.get(name, [])]
            allowed = ("QuantizeLinear",) if node.op_type in _FUSED else ("QuantizeLinear", *_FUSED)
            if name != _SCORES and any(reader not in allowed for reader in readers):
                findings.append(Finding("float-island", node.name, f"{name} goes to {', '.join(readers)}, not Q"))
    return findings


def _behind_dequantise(path: list[onnx.NodeProto]) -> set[str]:
    """Values that some activation DQ lies before (weights' DQ count as well: they feed quantised operators)."""
    behind: set[str] = set()
    for node in path:
        if node.op_type == "DequantizeLinear" or behind & set(node.input):
            behind |= set(node.output)
    return behind
