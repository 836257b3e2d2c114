"""Lowerings by hand: two Q/DQ pairs around a 1 x 1 convolution, so that every integer can be computed on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry_models.errors import ExportError
from skerry_models.forms import FORMS, Kept, affordable, budget, file_name, form_of, variant_name
from skerry_models.lowerings.absorb_relu import absorb_activations
from skerry_models.lowerings.half import halve
from skerry_models.lowerings.int4 import BLOCK, fits, pack_matrices, quantise_blocks
from skerry_models.lowerings.ort_format import flatten
from skerry_models.lowerings.table import LOWERINGS
from skerry_models.lowerings.zero_point import centre_activations
from skerry_models.runtime import open_session

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def quantised(activation: str) -> onnx.ModelProto:
    """x -> Q/DQ (scale 0.5) -> Conv by 2 -> activation -> Q/DQ (scale 1) -> Conv by 1 -> scores, features = x."""
    q, d = "QuantizeLinear", "DequantizeLinear"
    middle = {
        "Relu": [helper.make_node("Relu", ["c"], ["a"])],
        "Clip": [helper.make_node("Clip", ["c", "low", "high"], ["a"])],
        "none": [helper.make_node("Identity", ["c"], ["a"])],
    }[activation]
    nodes = [
        helper.make_node(q, ["input", "s0", "z"], ["x8"]),
        helper.make_node(d, ["x8", "s0", "z"], ["xd"]),
        helper.make_node(d, ["w8", "sw", "z"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="first"),
        *middle,
        helper.make_node(q, ["a", "s1", "z"], ["a8"]),
        helper.make_node(d, ["a8", "s1", "z"], ["ad"]),
        helper.make_node("Conv", ["ad", "one"], ["scores"], name="last"),
        helper.make_node("Identity", ["input"], ["features"]),
    ]
    constants = {
        "s0": np.float32(0.5),
        "s1": np.float32(1.0),
        "sw": np.float32(1.0),
        "z": np.int8(0),
        "w8": np.full((1, 1, 1, 1), 2, np.int8),
        "one": np.ones((1, 1, 1, 1), np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    row: list[str | int] = ["batch", 1, 1, 6]
    return model(nodes, constants, {"input": row}, {"scores": row, "features": row})


Shapes = dict[str, list[str | int]]


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any], inputs: Shapes, outputs: Shapes) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def scores(of: onnx.ModelProto, x: list[float]) -> list[float]:
    row = np.array(x, np.float32).reshape(1, 1, 1, -1)
    onnx.checker.check_model(of)
    (out,) = open_session(of.SerializeToString(), optimise=False).run(["scores"], {"input": row})
    values: list[float] = out.ravel().tolist()
    return values


def operators(of: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in of.graph.node]


ROW = [-70.0, -0.6, 0.2, 1.0, 40.0, 63.5]


def test_canonical_by_hand() -> None:
    # x / 0.5 rounded and clamped to int8: -128, -1, 0, 2, 80, 127; times 0.5 times 2: -128, -1, 0, 2, 80, 127.
    assert scores(quantised("Relu"), ROW) == [0, 0, 0, 2, 80, 127]
    assert scores(quantised("none"), ROW) == [-128, -1, 0, 2, 80, 127]
    assert scores(quantised("Clip"), ROW) == [0, 0, 0, 2, 6, 6]


@pytest.mark.parametrize("activation", ["Relu", "Clip", "none"])
def test_zero_point_rewrite_is_bit_identical(activation: str) -> None:
    source, rewritten = quantised(activation), quantised(activation)
    assert centre_activations(rewritten) == 2
    x = np.linspace(-90, 90, 60).reshape(10, -1).tolist()
    assert all(scores(rewritten, row) == scores(source, row) for row in x)
    zeros = {t.name: numpy_helper.to_array(t) for t in rewritten.graph.initializer if "zero_point" in t.name}
    assert {name: (str(value.dtype), int(value)) for name, value in zeros.items()} == {"zero_point_128": ("uint8", 128)}
    weights = next(node for node in rewritten.graph.node if node.input[0] == "w8")
    assert weights.input[2] == "z"  # weights stay int8 around 0
    assert centre_activations(rewritten) == 0


def test_relu_is_absorbed_exactly_up_to_saturation() -> None:
    lowered = quantised("Relu")
    assert absorb_activations(lowered) == 1
    assert "Relu" not in operators(lowered)
    assert scores(lowered, ROW) == [0, 0, 0, 2, 80, 127]
    # Above 127 steps: the canonical form saturates, this one goes on to 255 steps.
    wide, canonical = quantised("Relu"), quantised("Relu")
    for of in (wide, canonical):
        constant = next(t for t in of.graph.initializer if t.name == "w8")
        constant.CopyFrom(numpy_helper.from_array(np.full((1, 1, 1, 1), 6, np.int8), "w8"))
    absorb_activations(wide)
    assert scores(canonical, [10, 20, 40, 50, 60, -5]) == [60, 120, 127, 127, 127, 0]
    assert scores(wide, [10, 20, 40, 50, 60, -5]) == [60, 120, 240, 255, 255, 0]


def test_relu6_is_absorbed_by_a_finer_step_that_ends_at_6() -> None:
    lowered = quantised("Clip")
    assert absorb_activations(lowered) == 1
    assert "Clip" not in operators(lowered)
    got = scores(lowered, [-3.0, 0.5, 1.0, 3.0, 20.0, 2.5])
    # 6 / 255 a step: 1 is 42.5 steps (to even: 42), 2 is 85, 5 is 212.5 (212); 6 and more is 255.
    steps = [0, 42, 85, 255, 255, 212]
    assert got == pytest.approx([step * 6 / 255 for step in steps], abs=1e-5)


@pytest.mark.parametrize("change", ["read elsewhere", "clip from 1", "clip without end"])
def test_what_must_not_be_absorbed_stays(change: str) -> None:
    source = quantised("Clip")
    if change == "read elsewhere":
        source.graph.node[-1].input[0] = "a"
    elif change == "clip from 1":
        low = next(t for t in source.graph.initializer if t.name == "low")
        low.CopyFrom(numpy_helper.from_array(np.float32(1), "low"))
    else:
        source.graph.node[4].input[2] = ""
    lowered = onnx.ModelProto.FromString(source.SerializeToString())
    assert absorb_activations(lowered) == 0
    assert "Clip" in operators(lowered)
    assert scores(lowered, ROW) == scores(source, ROW)


def gemm(weight: Floats) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["input", "thousandth"], ["small"], name="scale"),
        helper.make_node("Gemm", ["small", "w", "b"], ["scores"], name="product", transB=1),
        helper.make_node("Identity", ["input"], ["features"], name="keep"),
    ]
    constants = {"w": weight, "b": np.ones(len(weight), np.float32), "thousandth": np.float32(0.001)}
    outputs, inner = weight.shape
    row: list[str | int] = ["batch", inner]
    return model(nodes, constants, {"input": row}, {"scores": ["batch", outputs], "features": row})


def test_half_precision_begins_behind_the_preprocessing() -> None:
    lowered = gemm(np.array([[1.0, 2.0], [0.1, -3.0]], np.float32))
    assert halve(lowered) == 2
    # 100,000 is beyond float16 (65,504); a thousandth of it is not: it is scaled in float32 before the cast.
    session = open_session(lowered.SerializeToString())
    got, features = session.run(["scores", "features"], {"input": np.array([[100_000.0, 2_000.0]], np.float32)})
    tenth = float(np.float16(0.1))
    assert got.dtype == np.float32
    assert got[0] == pytest.approx([100 + 4 + 1, 100 * tenth - 6 + 1], abs=0.01)
    assert features[0].tolist() == [100_000.0, 2_000.0]
    with pytest.raises(ExportError, match="beyond the range of float16"):
        halve(gemm(np.array([[1e6, 0.0]], np.float32)))


def test_int4_blocks_by_hand() -> None:
    rows = np.zeros((1, 34), np.float32)
    rows[0, :4] = [-8.0, 3.4, 3.6, 7.9]
    rows[0, 32:] = [0.5, -1.0]
    packed, scales = quantise_blocks(rows)
    assert packed.shape == (1, 2, BLOCK // 2)
    assert scales.tolist() == [[1.0, 0.125]]  # the largest by magnitude lies on step -8
    # Steps -8, 3, 4, 7 (8 is clamped), stored with 8 added, two per byte, the first low; then 4 and -8 of the rest.
    assert packed[0, 0, :3].tolist() == [0 | 11 << 4, 12 | 15 << 4, 8 | 8 << 4]
    assert packed[0, 1, 0] == 12 | 0 << 4


def test_int4_only_where_large_matrices_hold_most_weights() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((256, 300)).astype(np.float32)
    source, lowered = gemm(weight), gemm(weight)
    assert fits(source)
    assert not fits(gemm(weight[:100]))
    assert LOWERINGS["int4-weights"](gemm(weight[:100]).SerializeToString()) is None
    assert pack_matrices(lowered) == 1
    x = generator.standard_normal((3, 300)).astype(np.float32) * 1000
    expected, got = (
        open_session(of.SerializeToString()).run(["scores"], {"input": x})[0].astype(np.float32)
        for of in (source, lowered)
    )
    packed, scales = quantise_blocks(weight)
    steps = np.stack([packed & 15, packed >> 4], axis=-1).reshape(256, -1, BLOCK).astype(np.float32) - 8
    rebuilt = (steps * scales[..., None]).reshape(256, -1)[:, :300]
    np.testing.assert_allclose(got, x * 0.001 @ rebuilt.T + 1, rtol=0, atol=1e-3)
    assert np.abs(got - expected).max() < 0.25 * np.abs(expected).max()
    assert lowered.ByteSize() < source.ByteSize() / 5


def test_flat_form_computes_the_same() -> None:
    source = quantised("Relu")
    flat = flatten(source.SerializeToString())
    assert flat[4:8] == b"ORTM"
    row = np.array(ROW, np.float32).reshape(1, 1, 1, -1)
    (out,) = open_session(flat, optimise=False).run(["scores"], {"input": row})
    assert out.ravel().tolist() == [0, 0, 0, 2, 80, 127]


def test_table_is_consistent() -> None:
    assert set(LOWERINGS) == {name for name, form in FORMS.items() if form.kept is not Kept.REQUIRED}
    for form in FORMS.values():
        assert form.reference in FORMS
        assert (form.source in FORMS) != (form.source == "")
        assert bool(form.file) == (form.kept is not Kept.DEVICE)
    assert form_of("small/int8-x86") is FORMS["int8-x86"]
    assert (variant_name("small", "fp32"), file_name("small", "golden.pb")) == ("small/fp32", "small.golden.pb")
    assert (variant_name("", "fp32"), file_name("", "golden.pb")) == ("fp32", "golden.pb")


REQUIRED_SIZES = {"fp32": 1000, "int8-qdq": 300, "int8-x86": 300}


@pytest.mark.parametrize(
    ("optional", "kept", "refused"),
    [
        ({"int8-zp-relu": 300, "int8-zp": 300}, ["int8-zp-relu"], {"int8-zp": "int8-zp-relu does the same"}),
        ({"int8-zp": 300, "fp16": 500}, ["int8-zp"], {"fp16": "500 bytes, 100 are left"}),
        ({"int8-zp-relu": 401, "int8-zp": 400}, ["int8-zp"], {"int8-zp-relu": "401 bytes, 400 are left"}),
        ({}, [], {}),
    ],
)
def test_a_small_network_gets_twice_its_bytes(
    optional: dict[str, int], kept: list[str], refused: dict[str, str]
) -> None:
    assert affordable({**REQUIRED_SIZES, **optional}, list(optional)) == (kept, refused)
    assert (budget((1 << 20) - 1), budget(1 << 20)) == (2 * (1 << 20) - 2, 5 << 19)
