"""fp16: the scores path in half precision from its first convolution or matrix product on, for GPUs, TensorRT and ARM.

Input, preprocessing and drift features stay float32: raw units may exceed what float16 can hold (65,504), and drift
statistics must not depend on the form. Constants are rounded to the nearest float16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry_models.errors import ExportError
from skerry_models.export import SCORES
from skerry_models.lowerings.quantised_graph import GraphIndex
from skerry_models.onnx_graph import remove_unused
from skerry_models.quantise import float_nodes

_ARTIFACT = "fp16"
#: Inputs that say where and how much, and keep their type.
_SHAPE_INPUTS = {"Reshape": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 3), "Squeeze": (1,), "Unsqueeze": (1,)}


def halve(model: onnx.ModelProto) -> int:
    """Rewrite in place; returns how many constants became float16.

    Raises:
        ExportError: A constant is beyond the range of float16, or nothing on the path can be halved.
    """
    graph = model.graph
    index = GraphIndex.of(graph)
    kept = set(float_nodes(graph))
    halved = [node for node in graph.node if node.name not in kept]
    inside = {name for node in halved for name in node.output}
    if SCORES not in inside:
        raise ExportError(_ARTIFACT, f"the path to {SCORES} has nothing to halve")
    constants: dict[str, str] = {}
    casts: dict[str, str] = {}
    for node in halved:
        for position, name in enumerate(node.input):
            if not name or name in inside or position in _SHAPE_INPUTS.get(node.op_type, ()):
                continue
            if name in index.constants:
                if index.constants[name].data_type == TensorProto.FLOAT:
                    node.input[position] = _half_constant(graph, index, name, constants)
            else:
                node.input[position] = casts.setdefault(name, f"{name}.half")
    nodes = list(graph.node)
    del graph.node[:]
    made: set[str] = set()
    for node in nodes:
        for name, half in casts.items():
            if half in node.input and half not in made:
                graph.node.append(helper.make_node("Cast", [name], [half], name=f"Half_{name}", to=TensorProto.FLOAT16))
                made.add(half)
        for position, name in enumerate(node.output):
            if name == SCORES:
                node.output[position] = f"{SCORES}.half"
        graph.node.append(node)
    last = helper.make_node("Cast", [f"{SCORES}.half"], [SCORES], name="Half_back", to=TensorProto.FLOAT)
    graph.node.append(last)
    remove_unused(graph)
    return len(constants)


def _half_constant(graph: onnx.GraphProto, index: GraphIndex, name: str, made: dict[str, str]) -> str:
    if name not in made:
        value = numpy_helper.to_array(index.constants[name])
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(_ARTIFACT, f"{name} is beyond the range of float16")
        made[name] = f"{name}.half"
        graph.initializer.append(numpy_helper.from_array(half, made[name]))
    return made[name]
