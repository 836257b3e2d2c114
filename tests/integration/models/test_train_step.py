"""The exported step against torch in float64, for networks that use every supported kind of layer."""
# mypy: allow-subclassing-any

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from skerry_contract.tensors import Array
from skerry_contract.v1.release_pb2 import GoldenStep, TrainStepSpec
from skerry_models.errors import ExportError
from skerry_models.parameters import State, from_network
from skerry_models.runtime import Session, open_session
from skerry_models.tasks.digits import DigitsTask
from skerry_models.train_step import check_golden_step, export_network_step, export_train_step, golden_step, step_feed

MOMENTUM = 0.9
Float64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Grouped(nn.Module):
    """1-D, GroupNorm, groups, dilation, overlapping max pooling, average pooling, GELU, LayerNorm."""

    shape, classes = (4, 32), 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.layer_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm(self.first(x)))
        hidden = functional.max_pool1d(functional.gelu(self.second(hidden)), 3, stride=2, padding=1)
        return self.head(self.layer_norm(functional.avg_pool1d(hidden, 8).flatten(1)))


class Depthwise(nn.Module):
    """2-D, BatchNorm (buffers that change), depthwise, ReLU6, residual, a frozen parameter."""

    shape, classes = (2, 6, 6), 3

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.point = nn.Conv2d(2, 4, 1, stride=2)
        self.head = nn.Linear(36, 3)
        self.gain = nn.Parameter(torch.full((1,), 0.5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x + self.gain * functional.relu6(self.norm(self.depth(x)))
        return self.head(functional.relu(self.point(hidden)).flatten(1))


class Perceptron(nn.Module):
    """No convolution: the network that exports to an empty graph when an output is not exposed."""

    shape, classes = (6,), 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


@dataclass(frozen=True)
class Exported:
    """A network with its exported step."""

    create: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    model: bytes
    spec: TrainStepSpec
    session: Session

    def batch(self, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, *self.shape, generator=generator)
        return x, torch.randint(0, self.classes, (rows,), generator=generator)


def seeded(network: type[nn.Module]) -> Callable[[], nn.Module]:
    def create() -> nn.Module:
        torch.manual_seed(0)
        return network()

    return create


@pytest.fixture(scope="module", params=[Grouped, Depthwise, Perceptron, DigitsTask], ids=lambda kind: kind.__name__)
def exported(request: pytest.FixtureRequest) -> Exported:
    if request.param is DigitsTask:
        task = DigitsTask()
        model, spec = export_train_step(task)
        return Exported(lambda: task.create_network(0), task.input.shape, 10, model, spec, open_session(model))
    create = seeded(request.param)
    shape, classes = request.param.shape, request.param.classes
    model, spec = export_network_step(create(), shape, classes, MOMENTUM, batch=4)
    return Exported(create, shape, classes, model, spec, open_session(model))


def run_onnx(
    exported: Exported,
    state: State,
    velocities: State,
    reference: State,
    batch: tuple[torch.Tensor, torch.Tensor],
    *,
    rate: float,
    mu: float,
) -> tuple[float, State, State]:
    spec = exported.spec
    names = [spec.loss_output, *(p.new_output for p in spec.parameters)]
    names += [p.new_velocity_output for p in spec.parameters if p.trainable]
    feed: dict[str, Array] = step_feed(spec, state, velocities, reference) | {
        spec.data_input: batch[0].numpy(),
        spec.label_input: batch[1].numpy(),
        spec.learning_rate_input: np.array(rate, np.float32),
        spec.proximal_input: np.array(mu, np.float32),
    }
    results = dict(zip(names, exported.session.run(names, feed), strict=True))
    new = {p.name: results[p.new_output] for p in spec.parameters}
    moved = {p.name: results[p.new_velocity_output] for p in spec.parameters if p.trainable}
    return float(results[spec.loss_output].astype(np.float64)), new, moved


def torch_trajectory(
    exported: Exported,
    start: State,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    rate: float,
    mu: float,
    dtype: torch.dtype = torch.float64,
) -> tuple[list[float], dict[str, Float64]]:
    """torch's own SGD with momentum and the proximal pull, from ``start`` (which is also the global model)."""
    network = exported.create()
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in start.items()})
    network = network.to(dtype).train()
    anchor = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=rate, momentum=MOMENTUM)
    losses = []
    for x, y in batches:
        optimiser.zero_grad()
        loss = functional.cross_entropy(network(x.to(dtype)), y)
        loss.backward()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.grad.add_(parameter.detach() - anchor[name], alpha=mu)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}


def distance(one: State | dict[str, Float64], other: dict[str, Float64]) -> float:
    """Largest difference of any tensor, relative to the largest value of that tensor."""
    return max(
        float(np.abs(one[name].astype(np.float64) - other[name]).max() / max(np.abs(other[name]).max(), 1e-3))
        for name in other
    )


def nudge(array: Array) -> Array:
    """Move every float by about one rounding of float32, in float64; integers stay."""
    if array.dtype != np.float32:
        return array
    signs = np.sign(np.random.default_rng(1).standard_normal(array.shape))
    return array.astype(np.float64) * (1 + 1.2e-7 * signs)


def zeros(state: State) -> State:
    return {name: np.zeros_like(array) for name, array in state.items()}


@pytest.mark.parametrize("rows", [2, 7, 32])
def test_gradients_agree_with_float64(exported: Exported, rows: int) -> None:
    """With lr = 1, mu = 0 and no velocity, the new velocity is the gradient."""
    state = from_network(exported.create())
    batch = exported.batch(rows, seed=rows)
    loss, _, gradients = run_onnx(exported, state, zeros(state), state, batch, rate=1.0, mu=0.0)
    network = exported.create().double().train()
    expected_loss = functional.cross_entropy(network(batch[0].double()), batch[1])
    expected_loss.backward()
    assert loss == pytest.approx(float(expected_loss.detach()), rel=1e-5)
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert set(gradients) == set(named)
    scale = max(float(p.grad.abs().max()) for p in named.values())
    for name, parameter in named.items():
        difference = np.abs(gradients[name].astype(np.float64) - parameter.grad.numpy()).max()
        assert difference <= 5e-6 * scale, name


def test_one_row_is_a_batch(exported: Exported) -> None:
    state = from_network(exported.create())
    batch = exported.batch(1, seed=1)
    loss, new, _ = run_onnx(exported, state, zeros(state), state, batch, rate=0.1, mu=0.0)
    losses, expected = torch_trajectory(exported, state, [batch], rate=0.1, mu=0.0)
    assert loss == pytest.approx(losses[0], rel=1e-5)
    assert distance(new, expected) < 1e-5


def test_trajectory_stays_as_close_as_a_rounding_error_would(exported: Exported) -> None:
    """Momentum, FedProx and buffers over 20 steps; the yardstick is a start that differs by one float32 rounding."""
    start = from_network(exported.create())
    batches = [exported.batch(16 if step % 5 else 5, seed=100 + step) for step in range(20)]
    losses, expected = torch_trajectory(exported, start, batches, rate=0.05, mu=0.1)
    nudged = {name: nudge(array) for name, array in start.items()}
    _, moved = torch_trajectory(exported, nudged, batches, rate=0.05, mu=0.1)
    _, single = torch_trajectory(exported, start, batches, rate=0.05, mu=0.1, dtype=torch.float32)
    yardstick = max(distance(moved, expected), distance(single, expected))
    state, velocities, ours = start, zeros(start), []
    for batch in batches:
        loss, state, velocities = run_onnx(exported, state, velocities, start, batch, rate=0.05, mu=0.1)
        ours.append(loss)
    assert distance(state, expected) <= 10 * yardstick
    np.testing.assert_allclose(ours, losses, rtol=1e-3)
    assert distance(start, expected) > 1000 * yardstick


def test_every_part_of_the_formula_by_hand(exported: Exported) -> None:
    """velocity' = m v + g + mu (w - w0); w' = w - lr velocity', tensor by tensor."""
    state = from_network(exported.create())
    batch = exported.batch(6, seed=3)
    _, _, gradient = run_onnx(exported, state, zeros(state), state, batch, rate=1.0, mu=0.0)
    velocity: State = {name: np.full_like(array, 0.25) for name, array in state.items()}
    reference: State = {
        name: (array.astype(np.float64) - 0.5).astype(np.float32) if name in gradient else array
        for name, array in state.items()
    }
    _, new, moved = run_onnx(exported, state, velocity, reference, batch, rate=0.1, mu=2.0)
    for name in gradient:
        expected = MOMENTUM * 0.25 + gradient[name].astype(np.float64) + 2.0 * 0.5
        np.testing.assert_allclose(moved[name].astype(np.float64), expected, rtol=1e-5, atol=1e-5)
        stepped = state[name].astype(np.float64) - 0.1 * expected
        np.testing.assert_allclose(new[name].astype(np.float64), stepped, rtol=1e-5, atol=1e-5)


def test_specification_describes_the_graph(exported: Exported) -> None:
    model = onnx.load_from_string(exported.model)
    state = from_network(exported.create())
    assert [parameter.name for parameter in exported.spec.parameters] == list(state)
    for parameter in exported.spec.parameters:
        assert tuple(parameter.shape) == state[parameter.name].shape
        assert parameter.dtype == state[parameter.name].dtype.name
    assert exported.spec.momentum == MOMENTUM
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", exported.spec.opset)]
    assert {node.domain for node in model.graph.node} == {""}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    text = exported.model
    assert b"site-packages" not in text
    assert b".py" not in text


def test_frozen_parameters_and_buffers_are_carried(exported: Exported) -> None:
    carried = [parameter for parameter in exported.spec.parameters if not parameter.trainable]
    assert not any(p.velocity_input or p.global_input or p.new_velocity_output for p in carried)
    network = exported.create()
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert {p.name for p in carried} == frozen | {
        name for name, _ in network.named_buffers() if name in network.state_dict()
    }


def test_same_network_gives_the_same_bytes() -> None:
    one, _ = export_network_step(seeded(Perceptron)(), Perceptron.shape, 4, MOMENTUM, batch=4)
    other, _ = export_network_step(Perceptron(), Perceptron.shape, 4, MOMENTUM, batch=6)
    assert one == other  # neither the weights nor the traced batch matter


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.ConvTranspose1d(2, 2, 3), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(x).flatten(1))


class OverlappingAverage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(2, 2, 1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.avg_pool1d(self.first(x), 2, stride=1)[:, :, :4].flatten(1))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(10, 2), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


class NoOnnxForm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.special.i0(x.flatten(1) * self.head.bias[0]))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Transposed, "transposed"),
        (OverlappingAverage, "avg_pool2d_backward: stride"),
        (Unused, "no gradient for spare.weight, spare.bias"),
        (NoOnnxForm, "bessel_i0"),
        (DataDependent, "cannot be traced"),
    ],
)
def test_networks_without_a_plain_step_are_refused(network: type[nn.Module], message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export_network_step(network(), (2, 5) if network is not Transposed else (2, 4), 2, MOMENTUM, batch=4)
    assert caught.value.artifact == "train_step.onnx"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.9), (4, 1.0), (4, -0.1)])
def test_bad_arguments_are_refused(batch: int, momentum: float) -> None:
    with pytest.raises(ValueError):
        export_network_step(Perceptron(), Perceptron.shape, 4, momentum, batch=batch)


def test_golden_step_holds_and_finds_a_changed_graph() -> None:
    task = DigitsTask()
    step, spec = export_train_step(task)
    state = from_network(task.create_network(1))
    golden = GoldenStep.FromString(golden_step(task, state, step, spec, task.source("central")).SerializeToString())
    check_golden_step(step, golden)
    assert golden.tolerance > 0
    changed = onnx.load_from_string(step)
    (momentum,) = [tensor for tensor in changed.graph.initializer if tensor.name == "momentum"]
    momentum.CopyFrom(onnx.numpy_helper.from_array(np.array(0.0, np.float32), "momentum"))
    with pytest.raises(ExportError, match="differs by"):
        check_golden_step(changed.SerializeToString(), golden)
    with pytest.raises(ExportError, match="differs from torch"):
        golden_step(task, state, changed.SerializeToString(), spec, task.source("central"))
