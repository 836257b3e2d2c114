"""Values put into ONNX graphs without the onnx library, held against what the onnx library reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from skerry_contract.errors import WireError
from skerry_contract.onnx_binding import ELEMENT_TYPES, bind, bound_names, parse_graph
from skerry_contract.tensors import Array

#: Field 1000, a byte string: nothing of ONNX has it.
UNKNOWN = b"\xc2\x3e\x05hello"
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
ARRAYS = st.sampled_from(sorted(ELEMENT_TYPES)).flatmap(
    lambda name: hnp.arrays(
        name, SHAPES, elements={"allow_nan": False, "allow_infinity": False} if "float" in name else None
    )
)
NAMES = st.text("ab./", min_size=1, max_size=4)


def value(name: str, array: Array, kind: str = "input") -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, element, list(array.shape), doc_string=kind)


def evaluate_graph(parameters: dict[str, Array], constants: dict[str, Array], unknown: bytes = b"") -> bytes:
    """scores = input + 0 x whatever: a node for each parameter and constant, so that all of them are used."""
    nodes = [helper.make_node("Identity", ["input"], ["scores"], name="answer", doc_string="kept")]
    extra = {"extra": [1, 2]} if unknown else {}
    for index, name in enumerate([*parameters, *constants]):
        if index % 2 == 0:
            nodes.append(helper.make_node("Identity", [name], [f"out:{name}"], name=f"of:{name}", **extra))
        else:
            nodes.append(helper.make_node("Cast", [name], [f"out:{name}"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "evaluate",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])]
        + [value(name, array) for name, array in parameters.items()],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [tensor(name, array) for name, array in constants.items()],
        doc_string="a graph",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, doc_string="a model")
    model.metadata_props.add(key="k", value="v")
    for part in (*graph.node, *graph.initializer, *graph.input):
        part.MergeFromString(unknown)
    model.graph.CopyFrom(graph)
    model.graph.MergeFromString(unknown)
    return bytes(model.SerializeToString()) + unknown


def tensor(name: str, array: Array) -> onnx.TensorProto:
    """In raw bytes, or for some in typed fields."""
    if array.dtype == np.float32 and array.size % 2:
        return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel().tolist())
    return numpy_helper.from_array(array, name)


def infer_graph(names: tuple[str, ...] = ("val", "mid"), **changes: Any) -> bytes:
    """features = mean(input): one constant and one value between, of any names."""
    constant, middle = names
    nodes = [
        helper.make_node("Identity", ["input"], ["scores"], name="answer"),
        helper.make_node("Abs", ["input"], [middle], name="answer2"),
        helper.make_node("ReduceMean", [middle, constant], ["features"], keepdims=0, name=""),
        helper.make_node("Sqrt", ["input"], ["elsewhere"], name="unused"),
    ]
    graph = helper.make_graph(
        nodes,
        "infer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2][: 1 + (n == "scores")])
            for n in ("scores", "features")
        ],
        [numpy_helper.from_array(np.array([1], np.int64), constant), numpy_helper.from_array(np.ones(3), "spare")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], **{"ir_version": 9, **changes})
    return bytes(model.SerializeToString())


def bound(evaluate: bytes, infer: bytes, state: dict[str, Array]) -> onnx.ModelProto:
    return onnx.load_from_string(bind(evaluate, infer, state, data_input="input", features="features"))


@given(
    st.dictionaries(NAMES, ARRAYS, max_size=4),
    st.dictionaries(NAMES.map("c:".__add__), ARRAYS, max_size=4),
    st.tuples(NAMES, NAMES).filter(lambda names: names[0] != names[1]),
    st.sampled_from([b"", UNKNOWN]),
)
@settings(max_examples=30, deadline=None)
def test_parameters_are_inside_and_everything_else_is_what_it_was(
    parameters: dict[str, Array], constants: dict[str, Array], names: tuple[str, str], unknown: bytes
) -> None:
    evaluate = evaluate_graph(parameters, constants, unknown)
    before, after = onnx.load_from_string(evaluate), bound(evaluate, infer_graph(names), parameters)
    tensors = {item.name: item for item in after.graph.initializer}
    for name, array in parameters.items():
        read = numpy_helper.to_array(tensors[name])
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
    for item in before.graph.initializer:
        assert tensors[item.name].SerializeToString() == item.SerializeToString()
    assert [item.name for item in after.graph.input] == ["input"]
    assert [item.name for item in after.graph.output] == ["scores", "features"]
    kept = len(before.graph.node)
    assert [n.SerializeToString() for n in after.graph.node[:kept]] == [
        n.SerializeToString() for n in before.graph.node
    ]
    assert (after.doc_string, after.graph.doc_string, after.metadata_props[0].value) == ("a model", "a graph", "v")
    # every unknown field of the model, the graph and each node, tensor and input that is still there
    parts = 2 + kept + len(constants) + 1
    assert after.SerializeToString().count(UNKNOWN) == (parts if unknown else 0)
    made = [out for node in after.graph.node for out in node.output] + [*tensors, "input"]
    assert len(made) == len(set(made)), "no value has two origins"
    assert all(name in made for node in after.graph.node for name in node.input)
    assert [node.op_type for node in after.graph.node[kept:]] == ["Abs", "ReduceMean"], "only what features need"
    assert "spare" not in "".join(tensors)


def test_the_branch_computes_what_it_did_under_any_names() -> None:
    """A graph whose own names begin like the branch's: onnx's reference implementation runs it."""
    from onnx.reference import ReferenceEvaluator

    state: dict[str, Array] = {"branch.val": np.zeros(2, np.float32), ".branch.mid": np.zeros((), np.float32)}
    model = bound(evaluate_graph(state, {"mid": np.ones(1, np.float32)}), infer_graph(), state)
    x = np.array([[1, -3], [2, 2]], np.float32)
    scores, features = ReferenceEvaluator(model).run(None, {"input": x})
    assert scores.tolist() == x.tolist()
    assert features.tolist() == [2.0, 2.0]


def normalised(parameters: dict[str, Array]) -> bytes:
    """evaluate.onnx of a convolution and a normalisation layer, as FedBN keeps on the device."""
    names = ["conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    nodes = [
        helper.make_node("Unsqueeze", ["input", "axis"], ["image"]),
        helper.make_node("Conv", ["image", names[0]], ["convolved"]),
        helper.make_node("BatchNormalization", ["convolved", *names[1:]], ["normal"], epsilon=1e-5),
        helper.make_node("ReduceMax", ["normal", "axis2"], ["scores"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "evaluate",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])]
        + [value(name, parameters[name]) for name in names],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array([n], np.int64), name) for n, name in ((1, "axis"), (2, "axis2"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def test_a_normalisation_layer_of_the_devices_own_is_served() -> None:
    """Folding it into the convolution is the runtime's business; the numbers are those of the formula."""
    import onnxruntime

    state: dict[str, Array] = {
        "conv.weight": np.array([[[1.0]], [[-2.0]]], np.float32),
        "norm.weight": np.array([0.5, 2.0], np.float32),
        "norm.bias": np.array([1.0, -1.0], np.float32),
        "norm.running_mean": np.array([0.25, 0.5], np.float32),
        "norm.running_var": np.array([4.0, 0.25], np.float32),
        "norm.num_batches_tracked": np.array(7, np.int64),  # in the state, and in no graph
    }
    model = bound(normalised(state), infer_graph(), state).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.array([[1.0, 3.0]], np.float32)
    scores, features = session.run(["scores", "features"], {"input": x})
    # 0.5 (3 - 0.25) / 2 + 1 and 2 (-2 - 0.5) / 0.5 - 1
    np.testing.assert_allclose(scores, [[1.6875, -11.0]], rtol=1e-4)
    assert features.tolist() == [2.0]


W = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("state", "field"),
    [
        ({}, r"input\[w\]"),
        ({"w": np.ones((3, 2), np.float32)}, "parameter w"),
        ({"w": np.ones((2, 3), np.float64)}, "parameter w"),
        ({"w": np.ones((2, 3), np.uint16)}, "parameter w"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, "finite"),
        ({"w": np.full((2, 3), np.inf, np.float32)}, "finite"),
    ],
)
def test_values_that_do_not_fit_are_refused(state: dict[str, Array], field: str) -> None:
    with pytest.raises(WireError, match=field):
        bind(evaluate_graph({"w": W}, {}), infer_graph(), state, data_input="input", features="features")


def changed(data: bytes, change: Any) -> bytes:
    model = onnx.load_from_string(data)
    change(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.opset_import[0].MergeFrom(helper.make_opsetid("", 19)), "opset_import"),
        (lambda m: m.graph.output.pop(), "features in infer.onnx"),
        (lambda m: m.graph.input.add(name="second"), "one input input"),
        (lambda m: m.functions.add(name="f"), "no functions"),
        (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("body", m.graph)), "no subgraphs"),
        (lambda m: m.graph.sparse_initializer.add(), "dense tensors"),
        (lambda m: m.graph.initializer[0].external_data.add(key="location", value="/etc/passwd"), "inside the file"),
        (lambda m: setattr(m, "ir_version", 3), "ir_version"),
        (lambda m: m.ClearField("graph"), "nodes and outputs"),
        (lambda m: m.graph.node.extend([m.graph.node[0]] * 70_000), "at most 65536"),
        (lambda m: m.graph.value_info.extend([m.graph.input[0]] * 70_000), "at most 65536 values"),
    ],
)
def test_graphs_that_cannot_be_joined_are_refused(change: Any, field: str) -> None:
    infer = changed(infer_graph(), change)
    with pytest.raises(WireError, match=field):
        bind(evaluate_graph({"w": W}, {}), infer, {"w": W}, data_input="input", features="features")


def test_names_that_are_taken_are_refused() -> None:
    twice = changed(evaluate_graph({"w": W}, {}), lambda m: m.graph.initializer.append(numpy_helper.from_array(W, "w")))
    with pytest.raises(WireError, match="no other value"):
        bind(twice, infer_graph(), {"w": W}, data_input="input", features="features")
    with pytest.raises(WireError, match="no value features"):
        bind(
            evaluate_graph({"features": W}, {}), infer_graph(), {"features": W}, data_input="input", features="features"
        )


def test_what_a_graph_asks_for() -> None:
    assert bound_names(evaluate_graph({"a": W, "b": W}, {"c:c": W}), data_input="input") == {"a", "b"}


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=80, deadline=None)
def test_garbage_is_a_wire_error_or_a_graph(garbage: bytes, position: int, byte: int) -> None:
    good = evaluate_graph({"w": W}, {})
    spoiled = bytearray(good)
    spoiled[position % len(good)] = byte
    for data in (garbage, bytes(spoiled), good[: position % len(good)]):
        for pair in ((data, infer_graph()), (good, data)):
            try:
                bind(*pair, {"w": W}, data_input="input", features="features")
            except WireError:
                continue


def test_size_is_bounded() -> None:
    with pytest.raises(WireError, match="at most 10 bytes"):
        parse_graph(infer_graph(), limit=10)
