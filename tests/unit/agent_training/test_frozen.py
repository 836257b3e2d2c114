"""Training that moves some parameters only, by hand; and which own parameters are taken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skerry_agent.errors import InputError
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.personal_proof import CARRIED, RELEASE_TUNED, TUNED, better, compare
from skerry_agent.training.split import SplitSamples
from skerry_agent.training.trainer import EvaluationResult, TrainOptions
from skerry_contract.tensors import Array
from unit.agent_training.linear_graphs import BIAS, WEIGHT, linear_graphs, numbers

GRAPHS = linear_graphs()
TRAINER = OnnxTrainer(GRAPHS.step, GRAPHS.spec, GRAPHS.evaluate)


def never() -> bool:
    return False


def test_a_frozen_parameter_stays_and_the_other_moves_as_if_it_were_a_constant() -> None:
    # x = (1, 2), class 0, all zero, momentum .9. Step 1: error (-.5, .5), bias (.05, -.05). Step 2: the logits are the
    # bias alone, so p0 = sigmoid(.1) and the velocity is .9 * -.5 + (p0 - 1).
    x, y = np.array([[1.0, 2.0]], np.float32), np.array([0])
    options = TrainOptions(2, 8, learning_rate=0.1, frozen=frozenset({WEIGHT}))
    result = TRAINER.train(GRAPHS.zero_state(), x, y, options, never)
    assert not numbers(result.state[WEIGHT]).any()
    p0 = 1 / (1 + math.exp(-0.1))
    assert float(result.state[BIAS][0]) == pytest.approx(0.05 - 0.1 * (0.9 * -0.5 + p0 - 1), abs=1e-6)


def test_a_frozen_parameter_has_no_velocity_left_for_later() -> None:
    """All frozen: whatever the number of steps, the state is what it was, bit by bit."""
    state: dict[str, Array] = {WEIGHT: np.full((2, 2), 0.3, np.float32), BIAS: np.array([0.1, -0.7], np.float32)}
    x, y = np.ones((5, 2), np.float32), np.array([0, 1, 0, 0, 1])
    options = TrainOptions(3, 2, learning_rate=0.5, frozen=frozenset(state))
    trained = TRAINER.train(state, x, y, options, never).state
    assert all(trained[name].tobytes() == array.tobytes() for name, array in state.items())


def test_what_is_frozen_must_be_there() -> None:
    x, y = np.ones((1, 2), np.float32), np.array([0])
    with pytest.raises(InputError, match=r"frozen.*head"):
        TRAINER.train(GRAPHS.zero_state(), x, y, TrainOptions(1, 1, 0.1, frozen=frozenset({"head"})), never)


def samples(flip: bool = False) -> SplitSamples:
    """The first class where x0 > 1: a bias is all that a weight (1, 0; 0, 0) lacks."""
    x = np.random.default_rng(1).normal(size=(120, 2)).astype(np.float32)
    y = (x[:, 0] <= 1).astype(np.int64)
    train_y = 1 - y[:80] if flip else y[:80]
    return SplitSamples(x[:80], train_y, x[80:], y[80:])


RELEASE: dict[str, Array] = {WEIGHT: np.array([[3, 0], [0, 0]], np.float32), BIAS: np.zeros(2, np.float32)}


def own(value: float) -> dict[str, Array]:
    return {BIAS: np.array([value, 0], np.float32)}


@pytest.mark.parametrize(
    ("values", "flip", "origins"),
    [
        (own(-3.0), True, {CARRIED}),  # right as they are, and every fitting spoils them
        (own(2.0), False, {TUNED}),
        ({}, False, {RELEASE_TUNED}),
        (own(9.0), True, {CARRIED, TUNED, RELEASE_TUNED}),
    ],
)
def test_the_best_of_what_there_is_is_taken(values: dict[str, Array], flip: bool, origins: set[str]) -> None:
    found = compare(TRAINER, RELEASE, values, {BIAS}, samples(flip), never, origin=CARRIED)
    assert found.origin in origins
    assert list(found.own) == [BIAS]
    again = TRAINER.evaluate({**RELEASE, **found.own}, samples().validation_x, samples().validation_y, never)
    assert again == found.personal
    assert better(found.personal, found.released) == (not (flip and values[BIAS][0] == 9.0))


def test_as_often_right_and_more_surely_is_better() -> None:
    assert better(EvaluationResult(10, 0.9, 0.9), EvaluationResult(10, 0.8, 0.1))
    assert better(EvaluationResult(10, 0.8, 0.1), EvaluationResult(10, 0.8, 0.2))
    assert not better(EvaluationResult(10, 0.8, 0.2), EvaluationResult(10, 0.8, 0.2))
