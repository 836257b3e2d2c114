"""Graphs are made by hand, one broken rule each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry_models.canonical_lint import check_canonical, lint_canonical
from skerry_models.errors import ExportError


def canonical(extra: list[onnx.NodeProto] | None = None, last: str = "hidden") -> onnx.ModelProto:
    """input -> Q DQ -> Gemm -> Relu -> Q DQ -> [extra] -> Gemm -> scores, and a float branch to features."""
    nodes = [
        helper.make_node("Mul", ["input", "two"], ["prepared"], "prepare"),
        helper.make_node("QuantizeLinear", ["prepared", "scale", "zero"], ["q1"], "q1"),
        helper.make_node("DequantizeLinear", ["q1", "scale", "zero"], ["d1"], "d1"),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w1"], "w1"),
        helper.make_node("Gemm", ["d1", "w1", "bias"], ["g1"], "gemm1"),
        helper.make_node("Relu", ["g1"], ["r1"], "relu"),
        helper.make_node("QuantizeLinear", ["r1", "scale", "zero"], ["q2"], "q2"),
        helper.make_node("DequantizeLinear", ["q2", "scale", "zero"], ["hidden"], "d2"),
        *(extra or []),
        helper.make_node("Gemm", [last, "w1", "bias"], ["scores"], "gemm2"),
        helper.make_node("Sqrt", ["input"], ["features"], "feature"),
    ]
    constants = {
        "two": np.array([2.0], np.float32),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "weight": np.ones((3, 3), np.int8),
        "bias": np.zeros(3, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("scores", "features")],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model)
    return model


def replace_constant(model: onnx.ModelProto, name: str, value: np.ndarray | np.generic) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.array(value), name))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def test_canonical_graph_is_clean() -> None:
    assert lint_canonical(canonical()) == []
    check_canonical(canonical(), "infer.int8-qdq.onnx")


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 26


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def foreign_operator(model: onnx.ModelProto) -> None:
    node(model, "relu").domain = "com.microsoft"


def dynamic_width(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"


def missing_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "q2").input[2]


def float_scores_only(model: onnx.ModelProto) -> None:
    node(model, "gemm2").input[0] = "input"
    node(model, "gemm2").input[1] = "bias"


BROKEN: list[tuple[str, Callable[[onnx.ModelProto], None], str]] = [
    ("opset too new", newer_opset, "opset"),
    ("another domain imported", foreign_domain, "domain"),
    ("another domain used", foreign_operator, "domain"),
    ("width not static", dynamic_width, "static-shape"),
    ("zero point not 0", lambda model: replace_constant(model, "zero", np.int8(3)), "zero-point"),
    ("uint8", lambda model: replace_constant(model, "zero", np.uint8(0)), "uint8"),
    ("no zero point", missing_zero_point, "zero-point"),
    ("scale of 0", lambda model: replace_constant(model, "scale", np.float32(0)), "zero-point"),
    ("nothing quantised", float_scores_only, "unquantised"),
]


@pytest.mark.parametrize(("name", "damage", "rule"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_rules_are_found(name: str, damage: Callable[[onnx.ModelProto], None], rule: str) -> None:
    model = canonical()
    damage(model)
    assert rule in {finding.rule for finding in lint_canonical(model)}
    with pytest.raises(ExportError, match=rule) as caught:
        check_canonical(model, "infer.int8-qdq.onnx")
    assert caught.value.artifact == "infer.int8-qdq.onnx"


def test_float_islands_are_found_on_both_sides() -> None:
    island = canonical([helper.make_node("Tanh", ["hidden"], ["bent"], "island")], last="bent")
    findings = lint_canonical(island)
    assert {(finding.rule, finding.where) for finding in findings} == {
        ("float-island", "island"),
        ("float-island", "gemm2"),
    }


def test_an_activation_is_fused_only_once() -> None:
    twice = canonical()
    relu = node(twice, "relu")
    twice.graph.node.insert(6, helper.make_node("Relu", ["r1"], ["r2"], "relu2"))
    node(twice, "q2").input[0] = "r2"
    assert relu.output[0] == "r1"
    assert "float-island" in {finding.rule for finding in lint_canonical(twice)}


def test_features_may_stay_in_float() -> None:
    model = canonical()
    model.graph.node.append(helper.make_node("Abs", ["input"], ["unused"], "abs"))
    assert lint_canonical(model) == []
