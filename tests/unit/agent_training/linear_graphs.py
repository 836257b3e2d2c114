"""Softmax regression as a training step and an evaluation graph, node by node: its numbers can be checked by hand.

logits = flatten(x) * scale @ weight^T + bias          loss = mean cross entropy
d loss / d logits = (softmax(logits) - one_hot(y)) / batch
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry_contract.tensors import Array, encode_tensor
from skerry_contract.v1.release_pb2 import GoldenStep, ParameterSpec, TrainStepSpec

WEIGHT, BIAS = "linear.weight", "linear.bias"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def numbers(array: Array) -> npt.NDArray[np.float64]:
    """Any array of numbers as float64, for arithmetic and comparison."""
    return np.asarray(array).astype(np.float64)


@dataclass(frozen=True)
class LinearGraphs:
    """train_step.onnx, train_step.pb and evaluate.onnx of one shape and momentum."""

    step: bytes
    spec: TrainStepSpec
    evaluate: bytes
    row_shape: tuple[int, ...]
    classes: int

    def zero_state(self) -> dict[str, Array]:
        """All parameters zero: every class is equally likely, the loss is ln(classes)."""
        return {
            WEIGHT: np.zeros((self.classes, math.prod(self.row_shape)), np.float32),
            BIAS: np.zeros(self.classes, np.float32),
        }

    def golden(self, *, off_by: float = 0.0) -> GoldenStep:
        """A golden step computed by NumPy; ``off_by`` spoils one expected value."""
        x = np.linspace(0, 1, 2 * math.prod(self.row_shape), dtype=np.float32).reshape(2, *self.row_shape)
        y = np.array([0, 1], np.int64)
        state = self.zero_state()
        feeds: dict[str, Array] = {
            "x": x,
            "y": y,
            "lr": np.array(0.1, np.float32),
            "mu": np.array(0.0, np.float32),
            **state,
            **{f"v/{name}": np.zeros_like(array) for name, array in state.items()},
            **{f"g/{name}": array for name, array in state.items()},
        }
        expected = np.array(math.log(self.classes) + off_by, np.float32)
        return GoldenStep(
            inputs=[encode_tensor(name, array) for name, array in feeds.items()],
            outputs=[encode_tensor("loss", expected)],
            tolerance=1e-5,
        )


def _forward(
    row_shape: tuple[int, ...], scale: float, data: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    constants = [
        numpy_helper.from_array(np.array([-1, math.prod(row_shape)], np.int64), "flat_shape"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("Reshape", [data, "flat_shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["rows"]),
        helper.make_node("Gemm", ["rows", WEIGHT, BIAS], ["scores"], transB=1),
    ]
    return nodes, constants


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> bytes:
    graph = helper.make_graph(nodes, "linear", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def linear_graphs(
    row_shape: tuple[int, ...] = (2,), classes: int = 2, *, momentum: float = 0.9, scale: float = 1.0
) -> LinearGraphs:
    """Build the graphs."""
    features = math.prod(row_shape)
    shapes = {WEIGHT: [classes, features], BIAS: [classes]}
    nodes, constants = _forward(row_shape, scale, "x")
    constants += [
        numpy_helper.from_array(np.array(classes, np.int64), "depth"),
        numpy_helper.from_array(np.array([0, 1], np.float32), "off_on"),
        numpy_helper.from_array(np.array(momentum, np.float32), "momentum"),
    ]
    nodes += [
        helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "y"], ["loss"], reduction="mean"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("OneHot", ["y", "depth", "off_on"], ["truth"], axis=1),
        helper.make_node("Sub", ["probabilities", "truth"], ["error"]),
        helper.make_node("Shape", ["y"], ["batch_shape"]),
        helper.make_node("Cast", ["batch_shape"], ["batch"], to=FLOAT),
        helper.make_node("Div", ["error", "batch"], ["mean_error"]),
        helper.make_node("Gemm", ["mean_error", "rows"], [f"d/{WEIGHT}"], transA=1),
        helper.make_node("ReduceSum", ["mean_error", "axis0"], [f"d/{BIAS}"], keepdims=0),
    ]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "axis0"))
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["batch_size", *row_shape]),
        helper.make_tensor_value_info("y", INT64, ["batch_size"]),
        helper.make_tensor_value_info("lr", FLOAT, []),
        helper.make_tensor_value_info("mu", FLOAT, []),
    ]
    outputs = [helper.make_tensor_value_info("loss", FLOAT, [])]
    parameters: list[ParameterSpec] = []
    for name, shape in shapes.items():
        for prefix in ("", "v/", "g/"):
            inputs.append(helper.make_tensor_value_info(prefix + name, FLOAT, shape))
        nodes += [
            helper.make_node("Sub", [name, f"g/{name}"], [f"far/{name}"]),
            helper.make_node("Mul", [f"far/{name}", "mu"], [f"pull/{name}"]),
            helper.make_node("Add", [f"d/{name}", f"pull/{name}"], [f"gradient/{name}"]),
            helper.make_node("Mul", [f"v/{name}", "momentum"], [f"kept/{name}"]),
            helper.make_node("Add", [f"kept/{name}", f"gradient/{name}"], [f"nv/{name}"]),
            helper.make_node("Mul", [f"nv/{name}", "lr"], [f"move/{name}"]),
            helper.make_node("Sub", [name, f"move/{name}"], [f"np/{name}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"np/{name}", FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"nv/{name}", FLOAT, shape))
        parameters.append(
            ParameterSpec(
                name=name,
                dtype="float32",
                shape=shape,
                trainable=True,
                velocity_input=f"v/{name}",
                global_input=f"g/{name}",
                new_output=f"np/{name}",
                new_velocity_output=f"nv/{name}",
            )
        )
    spec = TrainStepSpec(
        parameters=parameters,
        data_input="x",
        label_input="y",
        learning_rate_input="lr",
        proximal_input="mu",
        loss_output="loss",
        momentum=momentum,
        opset=20,
    )
    forward, forward_constants = _forward(row_shape, scale, "input")
    evaluate = _model(
        forward,
        [
            helper.make_tensor_value_info("input", FLOAT, ["batch_size", *row_shape]),
            *(helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()),
        ],
        [helper.make_tensor_value_info("scores", FLOAT, ["batch_size", classes])],
        forward_constants,
    )
    return LinearGraphs(_model(nodes, inputs, outputs, constants), spec, evaluate, row_shape, classes)


def with_ranges(model: bytes, names: tuple[str, ...]) -> bytes:
    """calibrate.onnx of an evaluation graph."""
    proto = onnx.load_from_string(model)
    del proto.graph.output[:]
    for name in names:
        for prefix, operator in (("minimum/", "ReduceMin"), ("maximum/", "ReduceMax")):
            proto.graph.node.append(helper.make_node(operator, [name], [prefix + name], keepdims=0))
            proto.graph.output.append(helper.make_tensor_value_info(prefix + name, TensorProto.FLOAT, []))
    data: bytes = proto.SerializeToString()
    return data
