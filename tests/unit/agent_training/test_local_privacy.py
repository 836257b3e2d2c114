"""Local differential privacy on the device."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from skerry_agent.errors import InputError
from skerry_agent.training.local_privacy import noised, withheld
from skerry_contract.campaign import TrainReply
from skerry_contract.tensors import Array

MODEL: dict[str, Array] = {"w": np.full((200, 200), 0.25, np.float32), "count": np.array(5, np.int64)}


def floats(array: Array) -> npt.NDArray[np.float64]:
    return array.reshape(-1).astype(np.float64)


def moved(by: float) -> dict[str, Array]:
    return {"w": np.full((200, 200), 0.25 + by, np.float32), "count": np.array(6, np.int64)}


def test_the_noise_is_gaussian_around_the_clipped_update() -> None:
    state = moved(1.0)  # norm 200, clipped to 2: each value moves by 0.01
    result = noised(state, MODEL, clip_norm=2.0, noise_std=0.5)
    values = floats(result["w"]) - floats(MODEL["w"])
    assert values.mean() == pytest.approx(0.01, abs=4 * 0.5 / 200)
    assert values.std() == pytest.approx(0.5, rel=0.02)
    assert stats.kstest((values - 0.01) / 0.5, "norm").pvalue > 1e-4
    assert result["w"].dtype == np.float32
    assert result["count"] == 5
    assert state["w"][0, 0] == 1.25


def test_nobody_draws_the_same_noise_again() -> None:
    first = noised(moved(0.0), MODEL, clip_norm=1.0, noise_std=1.0)["w"]
    second = noised(moved(0.0), MODEL, clip_norm=1.0, noise_std=1.0)["w"]
    assert abs(np.corrcoef(floats(first), floats(second))[0, 1]) < 4 / 200


def test_with_one_key_another_update_has_other_noise() -> None:
    key = bytes(32)
    first = noised(moved(0.0), MODEL, clip_norm=1.0, noise_std=1.0, key=key)["w"]
    same = noised(moved(0.0), MODEL, clip_norm=1.0, noise_std=1.0, key=key)["w"]
    other = noised(moved(1e-6), MODEL, clip_norm=1.0, noise_std=1.0, key=key)["w"]
    assert first.tobytes() == same.tobytes()
    assert abs(np.corrcoef(floats(first), floats(other))[0, 1]) < 4 / 200


@pytest.mark.parametrize(
    ("clip_norm", "noise_std", "field"),
    [
        (0.0, 1.0, "clip_norm"),
        (math.inf, 1.0, "clip_norm"),
        (1.0, 0.0, "noise_std"),
        (1.0, math.nan, "noise_std"),
        (1e-6, 1e12, "noise_std"),
    ],
)
def test_noise_without_clipping_and_clipping_without_noise_are_refused(
    clip_norm: float, noise_std: float, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        noised(moved(1.0), MODEL, clip_norm=clip_norm, noise_std=noise_std)
    assert caught.value.field == field


def test_an_update_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        noised(moved(math.inf), MODEL, clip_norm=1.0, noise_std=1.0)


def test_the_reply_says_nothing_but_the_update() -> None:
    def reply(scale: int) -> TrainReply:
        return TrainReply(
            device_id="a",
            examples=10 * scale,
            steps=3 * scale,
            seconds=0.5 * scale,
            loss=0.1 * scale,
            validation_examples=2 * scale,
            validation_accuracy=0.25 * scale,
            validation_loss=0.7 * scale,
            parameters=b"noised",
            wire="int8",
            norm=1.0 * scale,
            squared_loss=2.0 * scale,
            control=b"c" * scale,
            personal_accuracy=0.3 * scale,
        )

    one, two = withheld(reply(1)), withheld(reply(2))
    assert one == two
    assert (one.device_id, one.parameters, one.wire) == ("a", b"noised", "int8")
    assert TrainReply.from_fields(one.to_fields()) == one
