"""Strategies that Flower does not have, and what all have in common, in numbers that can be followed on paper."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, encode_bundle
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.strategies import (
    STRATEGIES,
    Contribution,
    LocalRules,
    RoundStrategy,
    Strategy,
    StrategyState,
    check_strategy,
    create_strategy,
)
from skerry_server.federation.strategies.bulyan import select
from skerry_server.federation.strategies.geometric_median import weiszfeld_weights
from skerry_server.federation.strategies.krum import attackers, krum_scores, least_updates
from unit.agent_training.linear_graphs import numbers

Vector = list[float]


def strategy(name: str, *, learning_rate: float = 0.5, **settings: Any) -> Strategy:
    choices = SimpleNamespace(learning_rate=learning_rate, proximal_mu=0.0, strategy_settings=settings)
    return create_strategy(name, choices)


def vector(*values: float) -> dict[str, Array]:
    return {"w": np.array(values, np.float32)}


def near(actual: Array, expected: Any, *, rtol: float = 1e-7, atol: float = 0.0) -> None:
    np.testing.assert_allclose(numbers(actual), numbers(np.asarray(expected)), rtol=rtol, atol=atol)


def update(device: str, *values: float, **fields: Any) -> Contribution:
    given = {"examples": 1, "steps": 1, "loss": 1.0, "state": vector(*values), **fields}
    return Contribution(device, **given)


def step(
    chosen: Strategy, model: dict[str, Array], state: StrategyState, updates: list[Contribution], scratch: Path
) -> tuple[dict[str, Array], StrategyState]:
    aggregation = chosen.aggregation(model, state, scratch=scratch)
    for each in updates:
        aggregation.add(each)
    try:
        return chosen.step(1, model, aggregation.result(), aggregation, state)
    finally:
        aggregation.close()


def test_fedbuff_by_hand(tmp_path: Path) -> None:
    chosen = strategy("fedbuff", buffer=2, server_learning_rate=0.5)
    assert chosen.buffer == 2
    model = vector(1, 1)
    updates = [update("a", 3, 1, examples=999), update("b", 1, 5, staleness=3)]
    new, _ = step(chosen, model, chosen.start(model), updates, tmp_path)
    # w + 0.5 / 2 * (1 * (2, 0) + (1 + 3) ** -0.5 * (0, 4))
    near(new["w"], [1.5, 1.5], rtol=1e-6)


def test_fedbuff_takes_a_smaller_step_when_all_are_stale(tmp_path: Path) -> None:
    chosen = strategy("fedbuff", staleness_exponent=1.0)
    model = vector(0)
    new, _ = step(chosen, model, chosen.start(model), [update("a", 4, staleness=3)], tmp_path)
    near(new["w"], [1.0], rtol=1e-6)


def test_q_fedavg_by_hand(tmp_path: Path) -> None:
    chosen = strategy("qfedavg", q=1.0, learning_rate=0.5)  # L = 2
    model = vector(1)
    updates = [update("a", 0, loss=9.0, starting_loss=1.0), update("b", 3, loss=2.0)]
    new, _ = step(chosen, model, chosen.start(model), updates, tmp_path)
    # L (w - w_k) = 2, -4;  Delta = 1 * 2, 2 * -4;  h = 1 * 4 + 2 * 1, 1 * 16 + 2 * 2
    near(new["w"], [1 - (2 - 8) / (6 + 20)], rtol=1e-6)


def test_q_fedavg_with_q_0_is_the_plain_mean(tmp_path: Path) -> None:
    chosen = strategy("qfedavg", q=0.0)
    model = vector(10)
    updates = [update("a", 2, loss=0.0, examples=50), update("b", 4, loss=3.0)]
    new, _ = step(chosen, model, chosen.start(model), updates, tmp_path)
    near(new["w"], [3.0], rtol=1e-6)


def test_scaffold_by_hand(tmp_path: Path) -> None:
    """Two of four devices, one parameter, the loss of device i is (w - target_i) ** 2 / 2."""
    chosen = strategy("scaffold", server_learning_rate=0.5)
    model = vector(1)
    state = chosen.start(model, participants=4)
    assert chosen.local_rules(1, model) == LocalRules(control=True)
    np.testing.assert_array_equal(chosen.control(model, state)["w"], [0])

    # One step of rate 0.5 from w = 1 by g - c_i + c with c = c_i = 0: y = 1 - 0.5 * (1 - target)
    # c_i+ = c_i - c + (x - y) / (K * eta) = 1 - target
    updates = [
        update("a", 2.0, control=vector(-2.0), examples=9),  # target 3
        update("b", 0.0, control=vector(2.0)),  # target -1
    ]
    new, state = step(chosen, model, state, updates, tmp_path)
    near(new["w"], [1.0])
    near(chosen.control(new, state)["w"], [0.0])

    updates = [update("a", 2.0, control=vector(-2.0)), update("b", 1.0, control=vector(1.0))]
    new, state = step(chosen, new, StrategyState.decode(state.encode()), updates, tmp_path)
    near(new["w"], [1 + 0.5 * 0.5])  # eta_g / |S| * (1 + 0)
    near(chosen.control(new, state)["w"], [-0.25])  # 1 / N * (-2 + 1)
    assert state.numbers["participants"] == 4


def test_scaffold_refuses_an_update_without_a_control_variate(tmp_path: Path) -> None:
    chosen = strategy("scaffold")
    model = vector(1)
    aggregation = chosen.aggregation(model, chosen.start(model), scratch=tmp_path)
    for bad in (None, {"v": np.zeros(1, np.float32)}):
        with pytest.raises(ValueError, match=r"control|names"):
            aggregation.add(update("a", 2.0, control=bad))
    with pytest.raises(ValueError, match="nothing"):
        aggregation.result()


BATCH_NORM: dict[str, Array] = {
    "stem.0.weight": np.ones(2, np.float32),
    "stem.1.weight": np.ones(2, np.float32),
    "stem.1.running_mean": np.zeros(2, np.float32),
    "stem.1.num_batches_tracked": np.array(7, np.int64),
    "head.bias": np.zeros(2, np.float32),
}


@pytest.mark.parametrize(
    ("name", "settings", "personal"),
    [
        ("fedbn", {}, {"stem.1.weight", "stem.1.running_mean", "stem.1.num_batches_tracked"}),
        ("fedper", {}, {"head.bias"}),
        ("fedper", {"personal": ["stem.0.*", "head.*"]}, {"stem.0.weight", "head.bias"}),
    ],
)
def test_personal_parameters_are_never_averaged(
    name: str, settings: dict[str, Any], personal: set[str], tmp_path: Path
) -> None:
    chosen = strategy(name, **settings)
    state = chosen.start(BATCH_NORM)
    sent = {key: np.asarray(array + 5).astype(array.dtype) for key, array in BATCH_NORM.items()}
    shared = {key: array for key, array in sent.items() if key not in personal}
    updates = [update("a", state=sent), update("b", state=shared)]  # carried or left out: the same
    new, _ = step(chosen, BATCH_NORM, state, updates, tmp_path)
    assert list(new) == list(BATCH_NORM)
    for key, array in BATCH_NORM.items():
        np.testing.assert_array_equal(new[key], array if key in personal else sent[key])


@pytest.mark.parametrize(
    ("name", "settings"), [("fedbn", {}), ("fedper", {"personal": ["tail.*"]}), ("fedper", {"personal": ["*"]})]
)
def test_a_strategy_with_nothing_personal_or_nothing_shared_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        strategy(name, **settings).start({"first.weight": np.ones(1, np.float32), "head.bias": np.ones(1, np.float32)})
    assert caught.value.field == "settings.strategy_settings.personal"


def test_server_optimisers_leave_statistics_and_counts_to_the_mean(tmp_path: Path) -> None:
    """Adam would make a variance negative and a count a fraction."""
    model: dict[str, Array] = {
        "1.weight": np.zeros(1, np.float32),
        "1.running_var": np.ones(1, np.float32),
        "1.num_batches_tracked": np.array(4, np.int64),
    }
    sent: dict[str, Array] = {
        "1.weight": np.ones(1, np.float32),
        "1.running_var": np.full(1, 0.001, np.float32),
        "1.num_batches_tracked": np.array(8, np.int64),
    }
    chosen = strategy("fedadam", server_learning_rate=1.0)
    new, state = step(chosen, model, chosen.start(model), [update("a", state=sent)], tmp_path)
    near(new["1.running_var"], [0.001], rtol=1e-6)
    assert new["1.num_batches_tracked"] == 8
    assert sorted(state.tensors) == ["m/1.weight", "v/1.weight"]


def test_krum_scores_by_hand() -> None:
    points = np.array([0.0, 1.0, 3.0, 10.0, 12.0])
    distances = (points[:, None] - points[None, :]) ** 2
    # n - f - 2 = 2 neighbours each
    assert krum_scores(distances, 1).tolist() == [1 + 9, 1 + 4, 4 + 9, 4 + 49, 4 + 81]
    assert krum_scores(distances, 3).tolist() == [1, 1, 4, 4, 4]


def test_bulyan_selects_one_after_the_other() -> None:
    points = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 100.0])
    distances = (points[:, None] - points[None, :]) ** 2
    chosen = select(distances, 1)
    assert len(chosen) == 5
    assert 6 not in chosen
    assert chosen[0] in (2, 3)


@pytest.mark.parametrize(("share", "factor", "least"), [(0.3, 2, 5), (0.0, 2, 3), (0.2, 4, 11), (2, 2, 7), (2, 4, 11)])
def test_least_updates(share: float | int, factor: int, least: int) -> None:
    assert least_updates(share, factor) == least
    for count in range(least, least + 200):
        assert count >= factor * attackers(share, count) + 3
    assert least == 3 or least - 1 < factor * attackers(share, least - 1) + 3


def test_geometric_median_by_hand(tmp_path: Path) -> None:
    """Of three collinear points it is the middle one; of a right-angled cross it is the centre."""
    chosen = strategy("geometricmedian", smoothing=1e-9, iterations=1000)
    model = vector(0, 0)
    line = [update("a", 0, 0), update("b", 1, 0), update("c", 50, 0, examples=10**6)]
    new, _ = step(chosen, model, StrategyState(), line, tmp_path)
    near(new["w"], [1, 0], atol=1e-3)
    cross = [update("a", -1, 2), update("b", 7, 2), update("c", 2, -3), update("d", 2, 90)]
    new, _ = step(chosen, model, StrategyState(), cross, tmp_path)
    near(new["w"], [2, 2], atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e15, 1e30])
def test_the_geometric_median_does_not_lose_its_digits_to_a_huge_update(scale: float) -> None:
    """Two of seven points lie out; at the optimum the directions to all points cancel."""
    generator = np.random.default_rng(1)
    points = generator.standard_normal((7, 4))
    points[5:] = np.sign(points[5:]) * scale
    weights = weiszfeld_weights(points @ points.T, smoothing=1e-9, iterations=1000)
    centre = weights @ points
    away = points - centre
    gradient = (away / np.linalg.norm(away, axis=1, keepdims=True)).sum(axis=0)
    assert np.linalg.norm(gradient) < 1e-3
    assert np.abs(centre).max() < 5


@pytest.mark.parametrize("name", STRATEGIES)
def test_too_few_updates_are_said(name: str, tmp_path: Path) -> None:
    chosen = strategy(name)
    model: dict[str, Array] = {"a.running_mean": np.ones(1, np.float32), "head.w": np.ones(1, np.float32)}
    aggregation = chosen.aggregation(model, chosen.start(model), scratch=tmp_path)
    for number in range(chosen.minimum_updates - 1):
        aggregation.add(update(str(number), state=model, control={"head.w": model["head.w"]}))
    with pytest.raises(ValueError, match=r"nothing was added|the strategy needs"):
        aggregation.result()
    aggregation.add(update("last", state=model, control={"head.w": model["head.w"]}))
    near(aggregation.result()["head.w"], [1.0])
    aggregation.close()
    aggregation.close()


def test_the_order_of_arrival_does_not_change_a_robust_result(tmp_path: Path) -> None:
    """A resumed round adds the journalled updates in another order; equal scores must not be decided by it."""
    model = vector(0, 0)
    updates = [update(f"d{index}", *point) for index, point in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0), (0, 0.5)])]
    for name in ("krum", "multikrum", "median", "trimmedmean", "geometricmedian"):
        results = [
            step(strategy(name), model, StrategyState(), order, tmp_path)[0] for order in (updates, updates[::-1])
        ]
        np.testing.assert_array_equal(results[0]["w"], results[1]["w"], err_msg=name)


def test_a_weight_of_its_own_replaces_the_examples(tmp_path: Path) -> None:
    updates = [update("site", 4, examples=1, weight=3.0), update("b", 0, examples=1000, weight=1.0)]
    new, _ = step(strategy("fedavg"), vector(0), StrategyState(), updates, tmp_path)
    near(new["w"], [3.0])


def test_states_survive_the_journal_and_equal_states_are_equal_bytes() -> None:
    tensors = {"m/w": np.arange(3, dtype=np.float32), "m/b": np.array(2.5, np.float32)}
    state = StrategyState(tensors, {"clip": 0.5, "rounds": 3.0})
    back = StrategyState.decode(state.encode())
    assert back.numbers == state.numbers
    assert sorted(back.tensors) == ["m/b", "m/w"]
    np.testing.assert_array_equal(back.tensors["m/w"], tensors["m/w"])
    turned = StrategyState(dict(reversed(tensors.items())), {"rounds": 3.0, "clip": 0.5})
    assert turned.encode() == state.encode()
    assert StrategyState.decode(StrategyState().encode()) == StrategyState()


@pytest.mark.parametrize(
    "bundle",
    [
        {"numbers/x": np.array(math.nan)},
        {"numbers/x": np.array([1.0])},
        {"numbers/x": np.array(1, np.float32)},
        {"other": np.array(1.0)},
    ],
)
def test_broken_states_are_refused(bundle: dict[str, Array]) -> None:
    with pytest.raises(WireError):
        StrategyState.decode(encode_bundle(bundle))
    with pytest.raises(WireError):
        StrategyState.decode(b"\xff\xff")


def test_unknown_strategies_are_refused_and_new_ones_are_an_entry() -> None:
    with pytest.raises(InvalidRequestError, match="fedavg, fedprox") as caught:
        check_strategy("fedmagic")
    assert caught.value.field == "strategy"
    STRATEGIES["fedmagic"] = lambda settings: RoundStrategy()
    try:
        assert strategy("fedmagic").local_rules(1, vector(0)) == LocalRules()
    finally:
        del STRATEGIES["fedmagic"]
