"""An inference graph from evaluate.onnx and parameters, without torch: what a federated round is judged in.

``evaluate.onnx`` has the parameters as graph inputs. With values bound to them and the constants folded it computes
what infer.onnx computes, without the drift features, so the INT8 forms can be made of it in the way of a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from skerry_contract.tensors import Array
from skerry_models.errors import BundleError
from skerry_models.joint_graph import quiet_export
from skerry_models.onnx_graph import keep_default_domain, remove_unused, serialise


def bind_parameters(evaluate: bytes, state: Mapping[str, Array]) -> bytes:
    """Bytes of the graph with ``state`` inside; its only input is the data.

    Args:
        evaluate: Bytes of evaluate.onnx.
        state: Parameters by the names of the inputs.

    Raises:
        BundleError: A parameter that the graph asks for is missing, or of another shape.
    """
    from onnxscript import optimizer

    model = onnx.load_from_string(evaluate)
    graph = model.graph
    for value in [value for value in graph.input if value.name in state]:
        array = state[value.name]
        shape = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        if shape != array.shape:
            raise BundleError("evaluate.onnx", f"{value.name}: expected shape {shape}, got {array.shape}")
        graph.input.remove(value)
        graph.initializer.append(numpy_helper.from_array(array, value.name))
    if len(graph.input) != 1:
        raise BundleError("evaluate.onnx", f"parameters without a value: {[value.name for value in graph.input][1:6]}")
    remove_unused(graph)
    with quiet_export():
        bound: onnx.ModelProto = optimizer.optimize(model)
    keep_default_domain(bound)
    _fix_reshapes(bound.graph)
    remove_unused(bound.graph)
    for index, node in enumerate(bound.graph.node):
        node.name = f"{node.op_type}_{index}"
    return serialise(bound)


def _fix_reshapes(graph: onnx.GraphProto) -> None:
    """Give reshapes to ``[batch, constants]`` a constant shape: the canonical INT8 form knows no other."""
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        concat = producers.get(node.input[1])
        if concat is None or concat.op_type != "Concat":
            continue
        batch, *rest = concat.input
        shape = producers.get(batch)
        ends = {attribute.name: attribute.i for attribute in shape.attribute} if shape is not None else {}
        if shape is None or shape.op_type != "Shape" or (ends.get("start", 0), ends.get("end")) != (0, 1):
            continue
        if not all(name in constants and (constants[name] > 0).all() for name in rest):
            continue
        fixed = np.concatenate([np.array([-1], np.int64), *(constants[name].astype(np.int64) for name in rest)])
        name = f"{node.input[1]}.fixed"
        graph.initializer.append(numpy_helper.from_array(fixed, name))
        node.input[1] = name
