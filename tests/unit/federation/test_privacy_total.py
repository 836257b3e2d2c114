"""Central noise on a sum that secure aggregation unmasked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from skerry_contract.clipping import clip_state
from skerry_contract.tensors import Array
from skerry_models.evaluation import Evaluation
from skerry_models.model_card import write_model_card
from skerry_models.task import load_task
from skerry_server.federation.privacy import PrivacyPlan, PrivateSum
from skerry_server.federation.rounds.round_privacy import RoundPrivacy
from skerry_server.federation.strategies.protocol import Contribution

KEY = bytes(32)
MODEL: dict[str, Array] = {"w": np.zeros(20_000, np.float32), "n": np.array(3, np.int64)}


def floats(array: Array) -> npt.NDArray[np.float64]:
    return array.reshape(-1).astype(np.float64)


def private_sum(noise_multiplier: float = 0.0, divisor: int = 1) -> PrivateSum:
    return PrivateSum(MODEL, clip_norm=1.0, noise_multiplier=noise_multiplier, divisor=divisor, key=KEY, purpose=b"c/1")


def test_a_total_of_clipped_updates_is_what_adding_them_gives() -> None:
    rng = np.random.default_rng(1)
    states = [{"w": rng.normal(size=20_000).astype(np.float32), "n": MODEL["n"]} for _ in range(3)]
    one_by_one, at_once = private_sum(divisor=3), private_sum(divisor=3)
    for state in states:
        one_by_one.add(state)
    total = {"w": np.sum([floats(clip_state(state, MODEL, 1.0)[0]["w"]) for state in states], axis=0)}
    at_once.add_total(total, contributions=3)
    assert np.abs(floats(one_by_one.result()["w"]) - floats(at_once.result()["w"])).max() < 1e-8
    assert at_once.result()["n"] == 3


def test_the_noise_covers_what_the_ring_rounds() -> None:
    step = 1e-3  # coarse: rounding may lengthen a difference by step * sqrt(20000) = 0.1414
    private = private_sum(noise_multiplier=2.0)
    private.add_total({"w": np.zeros(20_000)}, contributions=5, below=4, quantisation_step=step)
    assert private.result()["w"].std() == pytest.approx(2.0 * (1 + step * math.sqrt(20_000)), rel=0.02)
    assert (private.contributions, private.below) == (5, 4)


@pytest.mark.parametrize(
    ("total", "reason"),
    [
        ({}, "shape"),
        ({"w": np.zeros(3)}, "shape"),
        ({"w": np.full(20_000, np.nan)}, "finite"),
        ({"w": np.full(20_000, 1e30)}, "larger than any sum"),
    ],
)
def test_a_total_that_cannot_be_is_refused_and_nothing_was_added(total: dict[str, Any], reason: str) -> None:
    private = private_sum()
    with pytest.raises(ValueError, match=reason):
        private.add_total(total, contributions=2)
    assert private.contributions == 0
    private.add_total({"w": np.full(20_000, 0.5)}, contributions=2)
    assert private.result()["w"].tolist()[0] == 0.5


@pytest.mark.parametrize(("contributions", "below"), [(0, 0), (2, 3), (2, -1)])
def test_impossible_counts_are_refused(contributions: int, below: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        private_sum().add_total({"w": np.zeros(20_000)}, contributions=contributions, below=below)


class NoStrategy:
    """An aggregation that must not be used: with central privacy nothing else sees the updates."""

    def add(self, contribution: Contribution) -> None:
        raise AssertionError("an update went past the private sum")

    def result(self) -> dict[str, Array]:
        raise AssertionError("the strategy's own aggregate was asked for")

    def close(self) -> None:
        pass


def round_privacy(**settings: Any) -> RoundPrivacy:
    given = {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 1.0, **settings}
    return RoundPrivacy(PrivacyPlan.from_settings(given, rounds=3), "c", lambda: KEY)


@pytest.mark.parametrize("secure", [False, True])
def test_a_round_of_the_campaign_moves_the_norm_and_keeps_personal_parameters(secure: bool) -> None:
    privacy = round_privacy(clip="adaptive", count_std=0.6)
    carried = privacy.start(2)
    model: dict[str, Array] = {"w": np.zeros(100, np.float32), "head": np.ones(3, np.float32)}
    taken = privacy.sum(NoStrategy(), model, carried, personal=("head",))
    difference = np.full(100, 0.01, np.float32)  # norm 0.1, below
    if secure:
        assert taken.add_total({"w": 2.0 * difference}, contributions=2, below=2, quantisation_step=0.0)
    else:
        for device in ("a", "b"):
            taken.add(
                privacy.weigh(Contribution(device_id=device, examples=9, steps=1, loss=0.1, state={"w": difference})),
                norm=0.1,
            )
    result = taken.result()
    assert result["head"].tolist() == [1.0, 1.0, 1.0]
    assert floats(result["w"]).std() == pytest.approx(1.0 / math.sqrt(1 - 1 / 1.44) / 2, rel=0.3)
    after, metrics = privacy.committed(carried, taken)
    deviate = -math.log(after["privacy_clip_norm"]) / 0.2 - 0.5
    assert deviate == pytest.approx(0.3 * taken.private.count_deviate() if taken.private else 0.0)
    assert metrics["privacy_rounds"] == 1.0
    assert metrics["privacy_epsilon"] == privacy.lineage(after)["epsilon"] == pytest.approx(4.377, abs=1e-3)


def test_without_central_privacy_a_sum_is_the_strategys() -> None:
    privacy = round_privacy(mode="local")
    taken = privacy.sum(NoStrategy(), MODEL, privacy.start(2))
    assert taken.private is None
    assert not taken.add_total({}, contributions=1, below=0, quantisation_step=0.0)


def test_the_model_card_says_what_was_spent() -> None:
    privacy = round_privacy()
    after, _ = privacy.committed(privacy.start(2), privacy.sum(NoStrategy(), MODEL, privacy.start(2)))
    figures = Evaluation(accuracy=1.0, macro_f1=1.0, loss=0.0, per_class=(None,) * 10, confusion=(), n=1)
    task = load_task("digits")

    def card(lineage: dict[str, object]) -> str:
        return write_model_card(task, {"fp32": figures}, parameters=1, sizes={}, lineage=lineage)

    assert "(4.377, 1e-05)-differentially private for each client" in card({"privacy": privacy.lineage(after)})
    assert "privacy" not in card({"origin": "central"})
