"""What an update must be to count, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skerry_contract.campaign import TrainReply
from skerry_contract.tensors import Array, encode_bundle
from skerry_contract.update_codec import encode_difference
from skerry_server.federation.rounds.updates import (
    NormBound,
    UpdateRejectedError,
    distance,
    read_update,
    rebase,
)

MODEL: dict[str, Array] = {
    "body.w": np.zeros((2, 2), np.float32),
    "head.w": np.ones(2, np.float32),
    "body.count": np.array(3, np.int64),
}
#: The body moved by (3, 4, 0, 0): norm 5.
MOVED: dict[str, Array] = {
    "body.w": np.array([[3, 4], [0, 0]], np.float32),
    "head.w": np.ones(2, np.float32),
    "body.count": np.array(4, np.int64),
}


def reply(state: Mapping[str, Array] = MOVED, **changes: Any) -> dict[str, object]:
    fields = TrainReply(
        device_id="a",
        examples=10,
        steps=3,
        seconds=0.1,
        loss=0.5,
        validation_examples=0,
        validation_accuracy=0.0,
        validation_loss=0.0,
        parameters=encode_bundle(state),
    )
    return dict(replace(fields, **changes).to_fields())


def test_a_plain_update() -> None:
    update = read_update(reply(norm=7.0, squared_loss=0.3, personal_accuracy=0.9), device_id="a", model=MODEL)
    assert update.metrics["norm"] == 5.0  # counted here, whatever the device says
    assert update.metrics["reported_norm"] == 7.0
    assert (update.metrics["squared_loss"], update.metrics["personal_accuracy"]) == (0.3, 0.9)
    assert list(update.state) == list(MODEL)
    unmeasured = read_update(reply(), device_id="a", model=MODEL)
    assert "squared_loss" not in unmeasured.metrics
    assert unmeasured.control is None


def test_a_difference_is_from_the_model() -> None:
    step = {"body.w": MOVED["body.w"], "head.w": np.zeros(2, np.float32), "body.count": MOVED["body.count"]}
    data, _ = encode_difference(step, wire="bfloat16", seed=1)
    update = read_update(
        reply(wire="bfloat16", parameters=data), device_id="a", model=MODEL, wires=("float32", "bfloat16")
    )
    np.testing.assert_array_equal(update.state["body.w"], MOVED["body.w"])
    assert int(update.state["body.count"]) == 4
    assert update.metrics["bytes_up"] == len(data)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"wire": "int8"}, "wire: expected one of float32, got int8"),
        ({"parameters": b"broken"}, "expected"),
        ({"device_id": "b"}, "device b answered for a"),
        ({"examples": 0}, "examples: expected"),
        ({"loss": float("nan")}, "loss: expected"),
        ({"parameters": encode_bundle({**MOVED, "more": np.zeros(1, np.float32)})}, r"differing: \['more'\]"),
        ({"parameters": encode_bundle({"head.w": MOVED["head.w"]})}, r"differing: \['body.count', 'body.w'\]"),
        ({"parameters": encode_bundle({**MOVED, "body.w": np.zeros(4, np.float32)})}, r"parameters\[body.w\]"),
        ({"parameters": encode_bundle({**MOVED, "head.w": np.ones(2, np.float64)})}, r"parameters\[head.w\]"),
        ({"parameters": encode_bundle({**MOVED, "head.w": np.full(2, np.inf, np.float32)})}, "not finite"),
    ],
)
def test_what_is_rejected_and_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UpdateRejectedError, match=reason):
        read_update({**reply(), **changes}, device_id="a", model=MODEL)


def test_a_difference_that_overflows_the_model_is_rejected() -> None:
    large = {**MODEL, "body.w": np.full((2, 2), 3e38, np.float32)}
    step = {"body.w": np.full((2, 2), 1e38, np.float32), "head.w": np.zeros(2, np.float32), "body.count": np.array(4)}
    data, _ = encode_difference(step, wire="int8", seed=1)
    with pytest.raises(UpdateRejectedError, match=r"parameters\[body.w\]: not finite"):
        read_update(reply(wire="int8", parameters=data), device_id="a", model=large, wires=("float32", "int8"))


def test_personal_parameters_stay_with_the_device() -> None:
    left_out = {name: array for name, array in MOVED.items() if name != "head.w"}
    for state in (left_out, {**MOVED, "head.w": np.full(2, 9.0, np.float32)}):
        update = read_update(reply(state), device_id="a", model=MODEL, personal=("head.*",))
        assert update.state["head.w"] is MODEL["head.w"]
    with pytest.raises(UpdateRejectedError, match=r"differing: \['head.w'\]"):
        read_update(reply(left_out), device_id="a", model=MODEL)


def test_a_control_variate_is_checked_like_parameters() -> None:
    control = {"body.w": np.zeros((2, 2), np.float32)}
    good = reply(control=encode_bundle({"body.w": np.ones((2, 2), np.float32)}))
    update = read_update(good, device_id="a", model=MODEL, control=control)
    assert update.control is not None
    assert len(update.payload) == len(update.payload.parameters) + len(good["control"])  # type: ignore[arg-type]
    for bad in (b"", encode_bundle({"body.w": np.full((2, 2), np.nan, np.float32)})):
        with pytest.raises(UpdateRejectedError, match="control: "):
            read_update(reply(control=bad), device_id="a", model=MODEL, control=control)
    assert read_update(reply(control=b"unwanted"), device_id="a", model=MODEL).payload.control == b""


def test_norms_are_measured_against_the_median_of_three_or_more() -> None:
    bound = NormBound(2.0, [1.0, 1.0])
    bound.check(50.0)  # two norms have no median worth speaking of
    with pytest.raises(UpdateRejectedError, match=r"norm 2\.5 is above 2 times the median 1 of 3 updates"):
        bound.check(2.5)
    bound.check(2.0)
    free = NormBound(0.0, [1.0, 1.0, 1.0])
    free.check(1e9)


def test_distance_is_summed_in_chunks_and_in_double() -> None:
    large = {"w": np.zeros(200_000, np.float32)}
    assert distance({"w": np.full(200_000, 1e-3, np.float32)}, large) == pytest.approx(1e-3 * 200_000**0.5)
    assert distance({"w": np.full(200_000, 3e38, np.float32)}, large) > 1e38  # squared, float32 would overflow
    assert distance(MODEL, MODEL) == 0.0


def test_rebased_states_move_by_the_same_step() -> None:
    new = {**MODEL, "body.w": np.full((2, 2), 10.0, np.float32)}
    state = rebase(MOVED, old=MODEL, new=new)
    np.testing.assert_array_equal(state["body.w"], [[13, 14], [10, 10]])
    assert int(state["body.count"]) == 4
    assert rebase(MOVED, old=MODEL, new=MODEL)["body.w"] is MOVED["body.w"]
