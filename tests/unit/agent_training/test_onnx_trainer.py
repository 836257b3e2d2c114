"""The trainer against numbers computed by hand and by NumPy on softmax regression."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skerry_agent.errors import ArtifactError, InputError
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import Labels, TrainingDivergedError, TrainingInterruptedError, TrainOptions
from skerry_contract.tensors import Array
from skerry_contract.v1.release_pb2 import TrainStepSpec
from unit.agent_training.linear_graphs import BIAS, WEIGHT, LinearGraphs, linear_graphs, numbers


def never() -> bool:
    return False


def open_trainer(graphs: LinearGraphs) -> OnnxTrainer:
    return OnnxTrainer(graphs.step, graphs.spec, graphs.evaluate)


@pytest.fixture
def graphs() -> LinearGraphs:
    return linear_graphs()


@pytest.fixture
def trainer(graphs: LinearGraphs) -> OnnxTrainer:
    return open_trainer(graphs)


def test_one_step_by_hand(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    # One sample x = (1, 2) of class 0, all parameters zero: probabilities (.5, .5), error (-.5, .5).
    x, y = np.array([[1.0, 2.0]], np.float32), np.array([0])
    result = trainer.train(graphs.zero_state(), x, y, TrainOptions(1, 8, learning_rate=0.1), never)
    np.testing.assert_allclose(numbers(result.state[WEIGHT]), [[0.05, 0.1], [-0.05, -0.1]], atol=1e-7)
    np.testing.assert_allclose(numbers(result.state[BIAS]), [0.05, -0.05], atol=1e-7)
    assert (result.examples, result.steps) == (1, 1)
    assert result.loss == pytest.approx(math.log(2))


def test_momentum_by_hand_and_velocities_start_at_zero_in_every_round(graphs: LinearGraphs) -> None:
    trainer = open_trainer(graphs)
    x, y = np.array([[0.0, 0.0]], np.float32), np.array([0])
    # Only the bias moves. Step 1: error -.5, bias .05. Step 2: p0 = sigmoid(.1), velocity .9 * -.5 + (p0 - 1).
    two = trainer.train(graphs.zero_state(), x, y, TrainOptions(2, 8, learning_rate=0.1), never)
    p0 = 1 / (1 + math.exp(-0.1))
    assert float(two.state[BIAS][0]) == pytest.approx(0.05 - 0.1 * (0.9 * -0.5 + p0 - 1), abs=1e-6)
    again = trainer.train(graphs.zero_state(), x, y, TrainOptions(2, 8, learning_rate=0.1), never)
    np.testing.assert_array_equal(again.state[BIAS], two.state[BIAS])


def numpy_training(
    state: dict[str, Array], x: Array, y: Labels, options: TrainOptions, momentum: float
) -> dict[str, Array]:
    """The same arithmetic in float64, with the trainer's order of samples."""
    rows_of = numbers(x)
    weight, bias = numbers(state[WEIGHT]), numbers(state[BIAS])
    weight0, bias0 = weight.copy(), bias.copy()
    weight_velocity, bias_velocity = np.zeros_like(weight), np.zeros_like(bias)
    order = np.random.default_rng(options.seed)
    for _ in range(options.local_epochs):
        rows = order.permutation(len(x))
        for start in range(0, len(x), options.batch_size):
            batch = rows[start : start + options.batch_size]
            scores = rows_of[batch] @ weight.T + bias
            error = np.exp(scores - scores.max(axis=1, keepdims=True))
            error /= error.sum(axis=1, keepdims=True)
            error[np.arange(len(batch)), y[batch]] -= 1
            error /= len(batch)
            weight_gradient = error.T @ rows_of[batch] + options.proximal_mu * (weight - weight0)
            bias_gradient = error.sum(axis=0) + options.proximal_mu * (bias - bias0)
            weight_velocity = momentum * weight_velocity + weight_gradient
            bias_velocity = momentum * bias_velocity + bias_gradient
            weight, bias = (
                weight - options.learning_rate * weight_velocity,
                bias - options.learning_rate * bias_velocity,
            )
    return {WEIGHT: weight, BIAS: bias}


@pytest.mark.parametrize("proximal_mu", [0.0, 0.7])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_epochs_batches_remainder_and_proximal_term(proximal_mu: float, batch_size: int) -> None:
    graphs = linear_graphs((3, 2), 4, momentum=0.8)
    generator = np.random.default_rng(5)
    x = generator.normal(size=(10, 3, 2)).astype(np.float32)
    y = generator.integers(0, 4, 10)
    state: dict[str, Array] = {
        WEIGHT: generator.normal(size=(4, 6)).astype(np.float32),
        BIAS: generator.normal(size=4).astype(np.float32),
    }
    options = TrainOptions(3, batch_size, learning_rate=0.05, proximal_mu=proximal_mu, seed=11)
    result = open_trainer(graphs).train(state, x, y, options, never)
    expected = numpy_training(state, x.reshape(10, 6), y, options, momentum=0.8)
    assert result.steps == 3 * math.ceil(10 / batch_size)
    for name in (WEIGHT, BIAS):
        np.testing.assert_allclose(numbers(result.state[name]), numbers(expected[name]), atol=2e-5)


def test_training_does_not_change_what_it_was_given(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    state = graphs.zero_state()
    for array in state.values():
        array.setflags(write=False)
    trainer.train(state, np.ones((3, 2), np.float32), np.array([0, 1, 0]), TrainOptions(2, 2, 0.5), never)
    assert not state[WEIGHT].any()


def test_evaluation_by_hand(trainer: OnnxTrainer) -> None:
    state: dict[str, Array] = {
        WEIGHT: np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
        BIAS: np.zeros(2, np.float32),
    }
    x = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]], np.float32)
    result = trainer.evaluate(state, x, np.array([0, 0, 0]), never)
    assert result.accuracy == pytest.approx(2 / 3)
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1)), math.log(1 + math.exp(-3))]
    assert result.loss == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_evaluation_in_several_batches(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    x = np.zeros((150, 2), np.float32)
    y = np.arange(150) % 2
    result = trainer.evaluate(graphs.zero_state(), x, y, never)
    assert (result.examples, result.accuracy) == (150, 0.5)
    assert result.loss == pytest.approx(math.log(2), rel=1e-6)


BAD_STATES: dict[str, tuple[dict[str, Array], str]] = {
    "missing": ({BIAS: np.zeros(2, np.float32)}, "parameters"),
    "foreign": (
        {WEIGHT: np.zeros((2, 2), np.float32), BIAS: np.zeros(2, np.float32), "other": np.zeros(1, np.float32)},
        "parameters",
    ),
    "shape": ({WEIGHT: np.zeros((2, 3), np.float32), BIAS: np.zeros(2, np.float32)}, f"parameters[{WEIGHT}]"),
    "type": ({WEIGHT: np.zeros((2, 2), np.float64), BIAS: np.zeros(2, np.float32)}, f"parameters[{WEIGHT}]"),
    "nan": ({WEIGHT: np.full((2, 2), np.nan, np.float32), BIAS: np.zeros(2, np.float32)}, f"parameters[{WEIGHT}]"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_state_that_does_not_fit_is_refused(trainer: OnnxTrainer, name: str) -> None:
    state, field = BAD_STATES[name]
    x, y = np.zeros((1, 2), np.float32), np.array([0])
    with pytest.raises(InputError) as caught:
        trainer.train(state, x, y, TrainOptions(1, 1, 0.1), never)
    assert caught.value.field == field
    with pytest.raises(InputError):
        trainer.evaluate(state, x, y, never)


@pytest.mark.parametrize("shape", [(0, 2), (2, 2), (1, 3), (1, 2, 1)])
def test_samples_that_do_not_fit_are_refused(
    trainer: OnnxTrainer, graphs: LinearGraphs, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        trainer.train(graphs.zero_state(), np.zeros(shape, np.float32), np.array([0]), TrainOptions(1, 1, 0.1), never)
    assert caught.value.field == "samples"


def test_a_loss_that_runs_away_is_reported(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    x = np.array([[1e30, -1e30], [-1e30, 1e30]], np.float32)
    with pytest.raises(TrainingDivergedError):
        trainer.train(graphs.zero_state(), x, np.array([0, 0]), TrainOptions(5, 1, 1e6), never)


def test_a_pause_is_waited_out_before_each_step(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    answers = iter([True, True, False, True, False])
    asked: list[bool] = []

    def should_pause() -> bool:
        asked.append(next(answers))
        return asked[-1]

    x, y = np.ones((2, 2), np.float32), np.array([0, 1])
    result = trainer.train(graphs.zero_state(), x, y, TrainOptions(1, 1, 0.1), should_pause)
    assert result.steps == 2
    assert asked == [True, True, False, True, False]


def test_an_interruption_ends_training(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    def should_pause() -> bool:
        raise TrainingInterruptedError("stopping")

    with pytest.raises(TrainingInterruptedError):
        trainer.train(
            graphs.zero_state(), np.ones((1, 2), np.float32), np.array([0]), TrainOptions(1, 1, 0.1), should_pause
        )


def test_the_golden_step_decides(trainer: OnnxTrainer, graphs: LinearGraphs) -> None:
    trainer.check_golden_step(graphs.golden())
    with pytest.raises(ArtifactError, match="loss is off by"):
        trainer.check_golden_step(graphs.golden(off_by=0.01))
    broken = graphs.golden()
    del broken.inputs[0]
    with pytest.raises(ArtifactError, match="cannot be run"):
        trainer.check_golden_step(broken)
    empty = graphs.golden()
    del empty.outputs[:]
    with pytest.raises(ArtifactError, match="no outputs"):
        trainer.check_golden_step(empty)


def test_graphs_that_disagree_with_the_spec_are_refused(graphs: LinearGraphs) -> None:
    other = TrainStepSpec()
    other.CopyFrom(graphs.spec)
    other.parameters[0].velocity_input = "elsewhere"
    with pytest.raises(ArtifactError, match="disagree about the inputs"):
        OnnxTrainer(graphs.step, other, graphs.evaluate)
    lacking = TrainStepSpec()
    lacking.CopyFrom(graphs.spec)
    lacking.loss_output = "nothing"
    with pytest.raises(ArtifactError, match="lacks the outputs"):
        OnnxTrainer(graphs.step, lacking, graphs.evaluate)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        OnnxTrainer(b"not a graph", graphs.spec, graphs.evaluate)
    with pytest.raises(ArtifactError, match=r"evaluate\.onnx"):
        OnnxTrainer(graphs.step, graphs.spec, graphs.step)
