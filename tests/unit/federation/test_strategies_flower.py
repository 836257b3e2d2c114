"""Our strategies beside Flower's own, over rounds: the same updates, the same models.

Flower keeps its moments in the object; ours are made anew each round and carry a journalled state, as after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import select_multikrum

from skerry_contract.tensors import Array
from skerry_server.federation.strategies import Contribution, StrategyState, create_strategy
from unit.agent_training.linear_graphs import numbers
from unit.federation.flower_replies import flower_aggregate, flower_configure

SHAPES = {"first.weight": (5, 3), "first.bias": (5,), "scale": ()}
State = dict[str, Array]


def random_state(generator: np.random.Generator, spread: float = 1.0) -> State:
    return {
        name: np.asarray(spread * generator.standard_normal(shape), dtype=np.float32) for name, shape in SHAPES.items()
    }


def around(generator: np.random.Generator, model: Mapping[str, Array], spread: float = 0.3) -> State:
    return {name: np.asarray(np.add(model[name], change)) for name, change in random_state(generator, spread).items()}


def near(actual: Array, expected: Array, *, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(numbers(actual), numbers(expected), rtol=rtol, atol=atol)


class Ours:
    """A strategy whose object lives for one round."""

    def __init__(self, name: str, model: State, scratch: Path, **settings: Any) -> None:
        self.choices = SimpleNamespace(learning_rate=0.05, proximal_mu=0.25, strategy_settings=settings)
        self.name, self.model, self.scratch = name, model, scratch
        self.state = create_strategy(name, self.choices).start(model).encode()

    def round(
        self,
        number: int,
        states: Sequence[State],
        examples: Sequence[int] | None = None,
        losses: Sequence[float] | None = None,
    ) -> State:
        strategy = create_strategy(self.name, self.choices)
        state = StrategyState.decode(self.state)
        aggregation = strategy.aggregation(self.model, state, scratch=self.scratch)
        for index, update in enumerate(states):
            aggregation.add(
                Contribution(
                    device_id=f"device-{index:02}",
                    examples=examples[index] if examples else 1,
                    steps=1,
                    loss=losses[index] if losses else 0.5,
                    state=update,
                )
            )
        self.model, state = strategy.step(number, self.model, aggregation.result(), aggregation, state)
        aggregation.close()
        self.state = state.encode()
        return self.model


OPTIMISERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "fedavgm": (
        lambda: flower.FedAvgM(server_momentum=0.7, server_learning_rate=0.5),
        {"momentum": 0.7, "server_learning_rate": 0.5},
    ),
    "fedadam": (
        lambda: flower.FedAdam(eta=0.02, beta_1=0.8, beta_2=0.95, tau=0.01),
        {"server_learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01},
    ),
    "fedyogi": (
        lambda: flower.FedYogi(eta=0.02, beta_1=0.8, beta_2=0.95, tau=0.01),
        {"server_learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01},
    ),
    "fedadagrad": (
        lambda: flower.FedAdagrad(eta=0.02, tau=0.01),
        {"server_learning_rate": 0.02, "tau": 0.01},
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_server_optimisers_give_flower_s_bits_over_rounds(name: str, tmp_path: Path) -> None:
    """One update a round: its mean is exact, so every difference would be the optimiser's."""
    generator = np.random.default_rng(4)
    make, settings = OPTIMISERS[name]
    model = random_state(generator)
    theirs, ours = make(), Ours(name, model, tmp_path, **settings)
    for number in range(1, 5):
        update = around(generator, model)
        flower_configure(theirs, number, model)
        expected = flower_aggregate(theirs, number, [update])
        model = ours.round(number, [update])
        for key in SHAPES:
            assert model[key].dtype == np.float32
            np.testing.assert_array_equal(model[key], expected[key].astype(np.float32), err_msg=f"{number} {key}")


@pytest.mark.parametrize("name", [*OPTIMISERS, "fedavg", "fedprox"])
def test_weighted_rounds_agree_with_flower(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    plain: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
        "fedavg": (flower.FedAvg, {}),
        "fedprox": (lambda: flower.FedProx(proximal_mu=0.25), {}),
    }
    make, settings = {**OPTIMISERS, **plain}[name]
    model = random_state(generator)
    theirs, ours = make(), Ours(name, model, tmp_path, **settings)
    for number in range(1, 4):
        updates, examples = [around(generator, model) for _ in range(6)], [3, 50, 7, 120, 9, 1]
        flower_configure(theirs, number, model)
        expected = flower_aggregate(theirs, number, updates, examples)
        model = ours.round(number, updates, examples)
        for key in SHAPES:
            near(model[key], expected[key], rtol=2e-5, atol=2e-6)
        model = {key: expected[key].astype(np.float32) for key in SHAPES}  # rounding must not add up in a comparison
        ours.model = model


def test_fedprox_tells_the_devices_what_flower_would(tmp_path: Path) -> None:
    model = random_state(np.random.default_rng(0))
    ours = Ours("fedprox", model, tmp_path)
    rules = create_strategy("fedprox", ours.choices).local_rules(3, model)
    assert rules.proximal_mu == flower_configure(flower.FedProx(proximal_mu=0.25), 3, model)["proximal-mu"] == 0.25
    assert create_strategy("fedavg", ours.choices).local_rules(3, model).proximal_mu == 0.0


def test_q_fedavg(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    model = random_state(generator)
    theirs = flower.QFedAvg(client_learning_rate=0.05, q=2.0)
    ours = Ours("qfedavg", model, tmp_path, q=2.0)
    for number in (1, 2):
        updates, losses = [around(generator, model) for _ in range(5)], [0.1, 2.0, 0.7, 3.5, 0.9]
        flower_configure(theirs, number, model)
        expected = flower_aggregate(theirs, number, updates, losses=losses)
        model = ours.round(number, updates, losses=losses)
        for key in SHAPES:
            near(model[key], expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [3, 6, 11])
def test_the_median_has_flower_s_bits(count: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(count)
    model = random_state(generator)
    updates = [around(generator, model) for _ in range(count)]
    expected = flower_aggregate(flower.FedMedian(), 1, updates)
    result = Ours("median", model, tmp_path).round(1, updates, examples=[10**9, *range(1, count)])
    for key in SHAPES:
        np.testing.assert_array_equal(result[key], expected[key])


@pytest.mark.parametrize(("count", "trim"), [(5, 0.2), (11, 0.3), (20, 0.1)])
def test_the_trimmed_mean_is_flower_s_in_float64_rounded_once(count: int, trim: float, tmp_path: Path) -> None:
    generator = np.random.default_rng(count)
    model = random_state(generator)
    updates = [around(generator, model) for _ in range(count)]
    wide = [{key: np.asarray(array, np.float64) for key, array in update.items()} for update in updates]
    expected = flower_aggregate(flower.FedTrimmedAvg(beta=trim), 1, wide)
    narrow = flower_aggregate(flower.FedTrimmedAvg(beta=trim), 1, updates)
    result = Ours("trimmedmean", model, tmp_path, trim=trim).round(1, updates)
    for key in SHAPES:
        np.testing.assert_array_equal(result[key], expected[key].astype(np.float32))
        near(result[key], narrow[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [9, 14])
@pytest.mark.parametrize("byzantine", [1, 3])
def test_krum_and_multikrum_choose_what_flower_chooses(count: int, byzantine: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(10 * count + byzantine)
    model = random_state(generator)
    updates = [around(generator, model, 0.1 if index >= byzantine else 4.0) for index in range(count)]
    expected = flower_aggregate(flower.Krum(num_malicious_nodes=byzantine), 1, updates)
    result = Ours("krum", model, tmp_path, byzantine=byzantine).round(1, updates)
    several = flower_aggregate(flower.MultiKrum(num_malicious_nodes=byzantine, num_nodes_to_select=5), 1, updates)
    mean = Ours("multikrum", model, tmp_path, byzantine=byzantine, keep=5).round(1, updates)
    for key in SHAPES:
        np.testing.assert_array_equal(result[key], expected[key])
        near(mean[key], several[key], rtol=1e-6, atol=1e-6)


def one_by_one(contents: list[RecordDict], byzantine: int, count: int) -> list[RecordDict]:
    """The selection of Bulyan's paper, by Flower's Krum."""
    left, chosen = list(contents), []
    for _ in range(count):
        best = select_multikrum(left, byzantine, 1)[0]
        chosen.append(best)
        left = [content for content in left if content is not best]
    return chosen


@pytest.mark.parametrize(("count", "byzantine"), [(7, 1), (12, 2), pytest.param(15, 3, marks=pytest.mark.soak)])
def test_bulyan(count: int, byzantine: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(count)
    model = random_state(generator)
    updates = [around(generator, model, 0.1 if index >= byzantine else 4.0) for index in range(count)]
    theirs = flower.Bulyan(num_malicious_nodes=byzantine, selection_rule=one_by_one)
    expected = flower_aggregate(theirs, 1, updates)
    result = Ours("bulyan", model, tmp_path, byzantine=byzantine).round(1, updates)
    for key in SHAPES:
        near(result[key], expected[key], rtol=1e-6, atol=1e-6)
