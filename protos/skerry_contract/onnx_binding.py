"""Putting parameters into an ONNX graph without the onnx library: a device makes a model with values of its own.

A bundle has two graphs of one network. ``evaluate.onnx`` takes every parameter as an input under its own name and gives
scores; ``infer.onnx`` has them folded in, and also gives drift features. Folding is not undone here: what an optimiser
has made of a normalisation layer or of a bias of zeros cannot be told from outside. Instead the values become
initializers of ``evaluate.onnx``, and the nodes that compute the features are copied over from ``infer.onnx``. So what
answers is the very graph that the parameters were measured in.

Only the parts of a file that :mod:`skerry_contract.v1.onnx_pb2` names are understood; everything else is carried along
as unknown fields, byte for byte. Invariants: the result has exactly the data input of ``infer.onnx``; sizes and counts
are bounded; graphs with subgraphs, functions, sparse or external tensors are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array
from skerry_contract.v1.onnx_pb2 import OnnxGraph, OnnxModel, OnnxNode, OnnxTensor, OnnxValueInfo
from skerry_contract.wire import parse_message

#: Largest graph that is read (bytes), and its most nodes and values.
GRAPH_BYTES = 1 << 30
NODES = 65_536
VALUES = 65_536
#: ``TensorProto.DataType`` by the NumPy name of the types that parameters have.
ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}
#: First IR version in which an initializer need not be an input, so that runtimes may fold it.
_IR_VERSION = 4


def parse_graph(data: bytes, *, limit: int = GRAPH_BYTES) -> OnnxModel:
    """Read an ONNX file.

    Raises:
        WireError: Not ONNX, empty, too large, or with something that cannot be carried over.
    """
    model = parse_message(OnnxModel, data, limit=limit)
    graph = model.graph
    if not graph.node or not graph.output:
        raise WireError("onnx.graph", expected="nodes and outputs", got=f"{len(graph.node)}, {len(graph.output)}")
    if len(graph.node) > NODES:
        raise WireError("onnx.graph.node", expected=f"at most {NODES}", got=len(graph.node))
    values = len(graph.initializer) + len(graph.input) + len(graph.output) + len(graph.value_info)
    if values > VALUES:
        raise WireError("onnx.graph", expected=f"at most {VALUES} values", got=values)
    if model.ir_version < _IR_VERSION:
        raise WireError("onnx.ir_version", expected=f"at least {_IR_VERSION}", got=model.ir_version)
    nested = any(item.HasField("g") or item.graphs for node in graph.node for item in node.attribute)
    if model.functions or nested:
        raise WireError("onnx.graph", expected="no functions and no subgraphs", got="some")
    if graph.sparse_initializer or any(tensor.external_data for tensor in graph.initializer):
        raise WireError("onnx.graph.initializer", expected="dense tensors inside the file", got="others")
    return model


def bind(evaluate: bytes, infer: bytes, state: Mapping[str, Array], *, data_input: str, features: str) -> bytes:
    """``evaluate`` with the values of ``state`` inside and the output ``features`` of ``infer`` beside its own.

    Args:
        evaluate: evaluate.onnx.
        infer: infer.onnx of the same bundle.
        state: Parameters by name; those that the graph does not ask for are left out.
        data_input: The input that both graphs share.
        features: Output of ``infer`` that ``evaluate`` does not have.

    Raises:
        WireError: A file is broken, or the graph asks for a parameter that is missing, or of another shape or type.
    """
    model, source = parse_graph(evaluate), parse_graph(infer)
    inside = sum(array.nbytes for array in state.values())
    if inside > GRAPH_BYTES:
        raise WireError("parameters", expected=f"at most {GRAPH_BYTES} bytes", got=inside)
    if _opsets(model) != _opsets(source):
        raise WireError("onnx.opset_import", expected=str(_opsets(model)), got=_opsets(source))
    _parameters_inside(model.graph, state, data_input)
    _copy_branch(model.graph, source.graph, data_input, features)
    return model.SerializeToString(deterministic=True)


def bound_names(evaluate: bytes, *, data_input: str) -> frozenset[str]:
    """Names of the parameters that ``evaluate`` asks for; raises WireError."""
    return frozenset(value.name for value in parse_graph(evaluate).graph.input) - {data_input}


def _parameters_inside(graph: OnnxGraph, state: Mapping[str, Array], data_input: str) -> None:
    taken = {tensor.name for tensor in graph.initializer}
    kept: list[OnnxValueInfo] = []
    tensors: list[OnnxTensor] = []
    for value in graph.input:
        if value.name == data_input:
            kept.append(value)
            continue
        array = state.get(value.name)
        if array is None:
            raise WireError(f"onnx.graph.input[{value.name[:80]}]", expected="a parameter with a value", got="none")
        if value.name in taken:
            raise WireError(f"onnx.graph.input[{value.name[:80]}]", expected="no other value of that name", got="one")
        tensors.append(_tensor(value, array))
    if [value.name for value in kept] != [data_input]:
        raise WireError("onnx.graph.input", expected=f"one input {data_input}", got=len(kept))
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(tensors)


def _tensor(value: OnnxValueInfo, array: Array) -> OnnxTensor:
    field = f"parameter {value.name[:80]}"
    declared = value.type.tensor_type
    shape = tuple(dimension.dim_value if dimension.HasField("dim_value") else -1 for dimension in declared.shape.dim)
    if shape != array.shape or declared.elem_type != ELEMENT_TYPES.get(array.dtype.name):
        raise WireError(
            field, expected=f"element type {declared.elem_type} {list(shape)}", got=f"{array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise WireError(field, expected="finite values", got="NaN or infinity")
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return OnnxTensor(name=value.name, dims=array.shape, data_type=declared.elem_type, raw_data=little.tobytes())


def _copy_branch(graph: OnnxGraph, source: OnnxGraph, data_input: str, output: str) -> None:
    """Copy what ``output`` of ``source`` is computed from, under names that ``graph`` does not have."""
    found = next((value for value in source.output if value.name == output), None)
    if found is None or any(value.name == output for value in graph.output):
        raise WireError("onnx.graph.output", expected=f"{output} in infer.onnx alone", got="not so")
    inputs = [value.name for value in source.input]
    if inputs != [data_input]:
        raise WireError("onnx.graph.input", expected=f"one input {data_input}", got=inputs[:8])
    nodes, needed = _ancestors(source, output)
    prefix = _free_prefix([*_names(graph), *needed])

    def renamed(names: Iterable[str]) -> list[str]:
        return [name if name in ("", data_input, output) else prefix + name for name in names]

    if output in _names(graph):
        raise WireError("onnx.graph", expected=f"no value {output} in evaluate.onnx", got="one")
    for tensor in source.initializer:
        if tensor.name in needed:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = renamed([tensor.name])[0]
    for original in nodes:
        node = graph.node.add()
        node.CopyFrom(original)
        del node.input[:], node.output[:]
        node.input.extend(renamed(original.input))
        node.output.extend(renamed(original.output))
        node.name = prefix + original.name
    graph.output.add().CopyFrom(found)


def _ancestors(graph: OnnxGraph, output: str) -> tuple[list[OnnxNode], set[str]]:
    """Nodes that ``output`` depends on, in graph order, and every value that they read or write."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name)
    nodes.reverse()
    needed.update(name for node in nodes for name in node.output if name)
    return nodes, needed


def _names(graph: OnnxGraph) -> set[str]:
    found = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    found.update(tensor.name for tensor in graph.initializer)
    return found.union(*((*node.input, *node.output, node.name) for node in graph.node))


def _free_prefix(names: Sequence[str]) -> str:
    """A prefix that no name begins with."""
    prefix = "branch."
    while any(name.startswith(prefix) for name in names):
        prefix = "." + prefix
    return prefix


def _opsets(model: OnnxModel) -> dict[str, int]:
    """Versions by domain; the default domain has two names."""
    return {"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import}
