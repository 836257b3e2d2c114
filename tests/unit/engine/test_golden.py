"""The golden check, on hand-made outputs."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_agent.engine.backend import Floats
from skerry_agent.engine.golden import Golden, check_golden, parse_golden
from skerry_contract.errors import WireError
from skerry_contract.tensors import encode_tensor
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet

X = np.array([[1.0], [2.0], [3.0]], dtype=np.float32)
GOLDEN = Golden(X, {"fp32": {"scores": X * 2}})


def verdict(offset: float, *, row: int = 1, tolerance: float = 0.25, batch: int = 64) -> tuple[bool, float, str]:
    def run(x: Floats) -> tuple[Floats, ...]:
        scores = x * 2
        scores[x == X[row]] += np.float32(offset)
        return (scores,)

    found = check_golden(run, GOLDEN, variant="fp32", outputs=("scores",), tolerance=tolerance, maximum_batch=batch)
    return found.passed, found.worst, found.detail


@pytest.mark.parametrize(
    ("offset", "passed", "worst"),
    [
        (0.0, True, 0.0),
        (0.25, True, 0.25),
        (-0.25, True, 0.25),
        (0.5, False, 0.5),
        (float("nan"), False, float("inf")),
        (float("inf"), False, float("inf")),
    ],
)
def test_difference_against_the_tolerance(offset: float, passed: bool, worst: float) -> None:
    got = verdict(offset)
    assert got[:2] == (passed, worst)
    assert ("row 1" in got[2]) is not passed


def test_every_row_runs_alone_and_in_batches() -> None:
    batches: list[int] = []

    def run(x: Floats) -> tuple[Floats, ...]:
        batches.append(len(x))
        return (x * 2,)

    check_golden(run, GOLDEN, variant="fp32", outputs=("scores",), tolerance=0, maximum_batch=2)
    assert batches == [1, 1, 1, 2, 1]


def test_a_fault_only_in_batches_is_found() -> None:
    def run(x: Floats) -> tuple[Floats, ...]:
        return (x * 2 + np.float32(len(x) > 1),)

    found = check_golden(run, GOLDEN, variant="fp32", outputs=("scores",), tolerance=0.1, maximum_batch=64)
    assert not found.passed


def test_another_shape_fails() -> None:
    found = check_golden(
        lambda x: (np.zeros((len(x), 2), dtype=np.float32),),
        GOLDEN,
        variant="fp32",
        outputs=("scores",),
        tolerance=1e9,
        maximum_batch=64,
    )
    assert not found.passed
    assert "shape" in found.detail


@pytest.mark.parametrize(("variant", "output"), [("int8-qdq", "scores"), ("fp32", "features")])
def test_what_was_not_recorded_fails(variant: str, output: str) -> None:
    found = check_golden(lambda x: (x,), GOLDEN, variant=variant, outputs=(output,), tolerance=1, maximum_batch=64)
    assert not found.passed
    assert "golden.pb has no" in found.detail


def test_parse() -> None:
    message = GoldenSet(
        inputs=[encode_tensor("input", X)],
        outputs=[GoldenOutputs(variant="fp32", tensors=[encode_tensor("scores", X * 2)])],
    )
    golden = parse_golden(message.SerializeToString(), input_name="input")
    np.testing.assert_array_equal(golden.x, X)
    np.testing.assert_array_equal(golden.outputs["fp32"]["scores"], X * 2)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (GoldenSet(), "golden.inputs"),
        (GoldenSet(inputs=[encode_tensor("other", X)]), "golden.inputs"),
        (GoldenSet(inputs=[encode_tensor("input", X.astype(np.float64))]), "golden.inputs[input].dtype"),
        (GoldenSet(inputs=[encode_tensor("input", X[:0])]), "golden.inputs[input].shape"),
        (GoldenSet(inputs=[encode_tensor("input", X[0])]), "golden.inputs[input].shape"),
    ],
)
def test_a_broken_golden_set_names_its_field(message: GoldenSet, field: str) -> None:
    with pytest.raises(WireError) as caught:
        parse_golden(message.SerializeToString(), input_name="input")
    assert caught.value.field == field


def test_bytes_that_are_no_golden_set() -> None:
    with pytest.raises(WireError):
        parse_golden(b"\xff\xff\xff", input_name="input")
