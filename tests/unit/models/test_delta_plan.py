"""Byte ranges of tensors in ONNX models and parameter files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry_contract.delta import apply
from skerry_contract.delta_writer import Match, write_delta
from skerry_contract.tensors import encode_bundle
from skerry_models.delta_plan import onnx_ranges, parameter_ranges, plan_matches


def model(weight: np.ndarray, scale: float, *, name: str = "w", first: str = "") -> bytes:
    """One matrix product with int8 weights, a float scale, an int64 constant and, if named, a constant in front."""
    tensors = [
        numpy_helper.from_array(weight, name),
        helper.make_tensor("s", TensorProto.FLOAT, [2], [scale, scale]),  # float_data, packed
        numpy_helper.from_array(np.array([1, 2, 3], dtype=np.int64), "shape"),
        helper.make_tensor("zero", TensorProto.INT8, [3], [0, 0, 0]),  # int32_data: as integers of varying length
    ]
    if first:
        tensors.insert(0, numpy_helper.from_array(np.ones(5, dtype=np.float32), first))
    node = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch"]) for value in ("x", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    data: bytes = helper.make_model(graph).SerializeToString(deterministic=True)
    return data


WEIGHT = np.arange(-60, 60, dtype=np.int8).reshape(10, 12)


def test_values_are_found_where_they_are() -> None:
    data = model(WEIGHT, 0.5)
    found = {tensor.name: tensor for tensor in onnx_ranges(data)}
    assert set(found) == {b"w", b"s"}
    w, s = found[b"w"], found[b"s"]
    assert (w.width, w.shape, data[w.start : w.start + w.length]) == (1, (10, 12), WEIGHT.tobytes())
    assert (s.width, s.shape, data[s.start : s.start + s.length]) == (
        4,
        (2,),
        np.full(2, 0.5, dtype=np.float32).tobytes(),
    )


def test_tensors_are_matched_by_name_type_and_shape() -> None:
    base, target = model(WEIGHT, 0.5), model(WEIGHT + np.int8(1), 0.25, first="bias")
    matches = plan_matches("a.onnx", base, target)
    assert [(match.length, match.width) for match in matches] == [(120, 1), (8, 4)]
    assert target[matches[0].target :][:120] == (WEIGHT + np.int8(1)).tobytes()
    assert base[matches[0].base :][:120] == WEIGHT.tobytes()
    assert apply(write_delta(base, target, matches), base) == target
    others = [model(WEIGHT, 0.5, name="v"), model(WEIGHT.reshape(12, 10), 0.5), model(WEIGHT.astype(np.uint8), 0.5)]
    for other in others:
        assert [match.width for match in plan_matches("a.onnx", base, other)] == [4]


def test_parameters_are_matched() -> None:
    old = np.arange(6, dtype=np.float32).reshape(2, 3)
    new, count = old + np.float32(0.5), np.array(7, dtype=np.int64)
    base, target = encode_bundle({"a": old, "n": count}), encode_bundle({"a": new, "n": count})
    [found] = parameter_ranges(target)
    assert target[found.start : found.start + found.length] == new.tobytes()
    assert (found.name, found.dtype, found.shape, found.width) == (b"a", b"float32", (2, 3), 4)
    assert plan_matches("parameters.pb", base, target) == [Match(found.start, parameter_ranges(base)[0].start, 24, 4)]


def test_other_files_have_no_tensors() -> None:
    assert plan_matches("model_card.md", b"old", b"new") == []


def test_what_is_no_message_is_refused() -> None:
    data = model(WEIGHT, 0.5)
    for broken in (data[:-1], b"\xff" * 20, b"\x3a\x7f", b"\x3b"):
        with pytest.raises(ValueError, match="byte"):
            onnx_ranges(broken)


def test_ranges_agree_with_onnx_on_a_model_of_another_writer() -> None:
    data = model(WEIGHT, 0.5, first="bias")
    parsed = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}
    for tensor in onnx_ranges(data):
        raw = data[tensor.start : tensor.start + tensor.length]
        assert raw == parsed[tensor.name.decode()].tobytes()
