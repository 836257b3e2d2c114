from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from skerry_contract.histogram import decode_counts, parse_edges
from skerry_models.edges import CELLS, reference_edges
from skerry_models.errors import BundleError
from skerry_models.task import Float32
from skerry_models.tasks.digits import DigitsTask

TASK = DigitsTask()


@pytest.fixture(scope="module")
def graph() -> bytes:
    """scores = the first ten values of a row, features = the next eight."""
    axes = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("s0", 0), ("s1", 10), ("f1", 18), ("axis", 1))
    ]
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Slice", ["flat", "s0", "s1", "axis"], ["scores"]),
        helper.make_node("Slice", ["flat", "s1", "f1", "axis"], ["features"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10]),
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8]),
            ],
            axes,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def rows(count: int, seed: int) -> Float32:
    return np.random.default_rng(seed).uniform(0, 16, (count, 1, 8, 8)).astype(np.float32)


def test_cells_hold_equal_shares_and_predictions_are_counted(graph: bytes) -> None:
    x = rows(200, 0)
    edges = parse_edges(reference_edges(TASK, graph, x, None))
    assert [feature.name for feature in edges.features] == list(TASK.feature_names)
    assert list(edges.classes) == list(TASK.classes)
    assert edges.reference_rows == 200
    for feature in edges.features:
        assert decode_counts(feature.reference, cells=CELLS).tolist() == [20] * CELLS
    expected = np.bincount(x.reshape(200, -1)[:, :10].argmax(1), minlength=10)
    assert decode_counts(edges.reference_predictions, cells=10).tolist() == expected.tolist()


def test_a_later_release_keeps_the_edges_and_counts_again(graph: bytes) -> None:
    first = reference_edges(TASK, graph, rows(200, 0), None)
    x = rows(50, 1)
    parent, child = parse_edges(first), parse_edges(reference_edges(TASK, graph, x, first))
    values = x.reshape(50, -1)[:, 10]
    for before, after in zip(parent.features, child.features, strict=True):
        assert list(after.edges) == list(before.edges)
    counts = decode_counts(child.features[0].reference, cells=CELLS)
    assert counts[0] == (values <= parent.features[0].edges[0]).sum()
    assert counts.sum() == 50
    assert child.reference_rows == 50


def test_foreign_or_broken_parent_edges_are_refused(graph: bytes) -> None:
    first = reference_edges(TASK, graph, rows(20, 0), None)
    foreign = parse_edges(first)
    foreign.features[0].name = "another"
    for parent in (foreign.SerializeToString(), b"\xff\xff", first[: len(first) // 2]):
        with pytest.raises(BundleError) as caught:
            reference_edges(TASK, graph, rows(20, 0), parent)
        assert caught.value.file == "drift_edges.pb"
    with pytest.raises(ValueError, match="at least one row"):
        reference_edges(TASK, graph, rows(0, 0), None)
