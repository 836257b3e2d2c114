"""SCAFFOLD on the device: option II by hand, the corrected step against plain SGD, variates kept as answers counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from skerry_agent.errors import InputError
from skerry_agent.training.control_variates import (
    change,
    check_control,
    correction,
    effective_steps,
    next_variate,
    own_variate,
)
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import TrainOptions
from skerry_agent.training.worker import RefusedError
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from unit.agent_training.campaign_rig import Device, Samples, counted, decoded, graphs_of, instruction
from unit.agent_training.linear_graphs import BIAS, WEIGHT, numbers

F32 = np.float32
Floats = npt.NDArray[np.float64]


def test_option_two_by_hand() -> None:
    """c = 2, c_i = 1, from x = 10 to y = 4 in 3 steps of 0.5: c_i' = 1 - 2 + 6 / 1.5 = 3, the change is 2."""
    control: dict[str, Array] = {"w": np.array([2.0], F32), "buffer": np.zeros(4, F32)}
    server: dict[str, Array] = {"w": control["w"]}
    own: dict[str, Array] = {"w": np.array([1.0], F32)}
    x: dict[str, Array] = {"w": np.array([10.0], F32)}
    y: dict[str, Array] = {"w": np.array([4.0], F32)}
    assert correction(server, own)["w"].tolist() == [1.0]
    following = next_variate(server, own, x, y, steps=3, learning_rate=0.5, momentum=0.0)
    assert following["w"].tolist() == [3.0]
    told = change(following, own, control)
    assert {name: array.tolist() for name, array in told.items()} == {"w": [2.0], "buffer": [0.0] * 4}


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (7, 0.0), (1, 0.9), (2, 0.5), (40, 0.9)])
def test_effective_steps_are_the_weights_of_equal_gradients(steps: int, momentum: float) -> None:
    velocity = moved = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        moved += velocity
    assert effective_steps(steps, momentum) == pytest.approx(moved, rel=1e-12)


def sgd(
    x: Floats, y: npt.NDArray[np.int64], correction: dict[str, Floats], *, momentum: float, rate: float, seed: int
) -> tuple[dict[str, Floats], list[dict[str, Floats]]]:
    """Softmax regression in float64: the parameters after two epochs of batches of 16, and each plain gradient."""
    weight, bias = np.zeros((8, x.shape[1])), np.zeros(8)
    velocity = {WEIGHT: np.zeros_like(weight), BIAS: np.zeros_like(bias)}
    gradients: list[dict[str, Floats]] = []
    order = np.random.default_rng(seed)
    for _ in range(2):
        rows = order.permutation(len(x))
        for start in range(0, len(x), 16):
            batch = rows[start : start + 16]
            scores = x[batch] @ weight.T + bias
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            share /= share.sum(axis=1, keepdims=True)
            share[np.arange(len(batch)), y[batch]] -= 1
            share /= len(batch)
            gradient = {WEIGHT: share.T @ x[batch], BIAS: share.sum(axis=0)}
            gradients.append(gradient)
            for name in velocity:
                velocity[name] = momentum * velocity[name] + gradient[name] + correction[name]
            weight -= rate * velocity[WEIGHT]
            bias -= rate * velocity[BIAS]
    return {WEIGHT: weight, BIAS: bias}, gradients


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_step_moves_along_the_corrected_gradient(momentum: float) -> None:
    graphs = graphs_of(momentum)
    trainer = OnnxTrainer(graphs.step, graphs.spec, graphs.evaluate)
    samples = Samples(50)
    generator = np.random.default_rng(3)
    wanted = {name: generator.normal(size=array.shape) * 0.1 for name, array in graphs.zero_state().items()}
    corrected = {name: array.astype(F32) for name, array in wanted.items()}
    options = TrainOptions(2, 16, 0.1, seed=4, correction=corrected)
    result = trainer.train(graphs.zero_state(), samples.x, samples.y, options, lambda: False)
    expected, gradients = sgd(numbers(samples.x), samples.y, wanted, momentum=momentum, rate=0.1, seed=4)
    for name, array in expected.items():
        np.testing.assert_allclose(numbers(result.state[name]), array, atol=2e-5)
    # With c_i = 0 and c = the correction, the new variate is the weighted mean of the plain gradients.
    following = next_variate(
        corrected,
        own_variate({}, corrected),
        graphs.zero_state(),
        result.state,
        steps=result.steps,
        learning_rate=0.1,
        momentum=momentum,
    )
    weights = np.array([1 - momentum ** (len(gradients) - index) for index in range(len(gradients))])
    for name in expected:
        mean = np.average([gradient[name] for gradient in gradients], axis=0, weights=weights)
        np.testing.assert_allclose(numbers(following[name]), mean, atol=5e-5)


def test_a_correction_that_does_not_fit_is_refused() -> None:
    graphs = graphs_of()
    trainer = OnnxTrainer(graphs.step, graphs.spec, graphs.evaluate)
    samples = Samples(20)
    bad: list[dict[str, Array]] = [
        {"other": np.zeros(2, F32)},
        {BIAS: np.zeros(9, F32)},
        {BIAS: np.zeros(8)},
        {BIAS: np.full(8, np.nan, F32)},
    ]
    for correction_ in bad:
        options = TrainOptions(1, 16, 0.1, correction=correction_)
        with pytest.raises(InputError, match="correction"):
            trainer.train(graphs.zero_state(), samples.x, samples.y, options, lambda: False)


def test_the_servers_variate_must_fit_the_network() -> None:
    model: dict[str, Array] = {"w": np.zeros((2, 3), F32), "n": np.array(1)}
    good: dict[str, Array] = {"w": np.ones((2, 3), F32), "more": np.zeros(1, F32)}
    assert list(check_control(good, model, ["w"])) == ["w"]
    bad: list[dict[str, Array]] = [
        {},
        {"w": np.zeros(6, F32)},
        {"w": np.zeros((2, 3))},
        {"w": np.full((2, 3), np.inf, F32)},
    ]
    for control in bad:
        with pytest.raises(WireError, match=r"control\[w\]"):
            check_control(control, model, ["w"])
    assert own_variate({"w": np.ones(5, F32)}, good)["w"].tolist() == [[0.0] * 3] * 2


def zeros(state: dict[str, Array]) -> dict[str, Array]:
    return {name: np.zeros_like(array) for name, array in state.items()}


def test_over_rounds_the_servers_variate_is_the_mean_of_the_devices(tmp_path: Path) -> None:
    """Two devices, one answer lost, one restart: what the server adds up stays what the devices hold."""
    graphs = graphs_of()
    model = graphs.zero_state()
    control = zeros(model)
    devices = {
        name: Device(tmp_path / name, graphs, samples=Samples(40, seed=seed), name=name)
        for name, seed in (("device-7", 1), ("another", 2))
    }
    last = dict.fromkeys(devices, 0)
    for number in range(1, 6):
        lost = "device-7" if number == 3 else ""
        states, changes = [], []
        for name, device in devices.items():
            heard = counted(last[name]) if name == "device-7" else b""
            asked = instruction(model, number, control=encode_bundle(control), counted=heard, learning_rate=0.1)
            reply = device.train(asked)
            if name == lost:
                continue
            last[name] = number
            states.append(decoded(reply, model))
            changes.append(decode_bundle(reply.control))
            if number == 4:
                device.start()
        model = {name: np.mean([numbers(state[name]) for state in states], axis=0).astype(F32) for name in model}
        for name in control:
            total = np.sum([numbers(change_[name]) for change_ in changes], axis=0)
            control[name] = (numbers(control[name]) + total / len(devices)).astype(F32)
        held = [device.state.journal.carried("campaign-1", last[name]).control for name, device in devices.items()]
        for name in control:
            mean = np.mean([numbers(own[name]) for own in held], axis=0)
            np.testing.assert_allclose(numbers(control[name]), mean, atol=1e-6, err_msg=f"round {number}")
    assert max(float(np.abs(numbers(array)).max()) for array in control.values()) > 1e-3


def test_a_broken_variate_is_refused() -> None:
    graphs = graphs_of()
    for data in (b"\xff\xff", encode_bundle({WEIGHT: np.zeros((8, 64), F32)})):
        with pytest.raises(RefusedError):
            Device(None, graphs).train(instruction(graphs.zero_state(), control=data))
