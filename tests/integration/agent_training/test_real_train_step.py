"""The trainer on the exported training step of the digits task, beside torch's own SGD on the same batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import TrainOptions
from skerry_models.export import export_inference
from skerry_models.kept_step import train_step_for
from skerry_models.parameters import create_loaded, from_network, initial_parameters
from skerry_models.task import load_task

MU = 0.1


def test_two_epochs_equal_torch() -> None:
    torch.set_num_threads(1)
    task = load_task("digits")
    state = initial_parameters(task, 0)
    samples = task.source("client/c03")
    step, golden = train_step_for(task, state, samples, None)
    spec = step.spec
    trainer = OnnxTrainer(step.model, spec, export_inference(task, state, samples.x).evaluate)
    trainer.check_golden_step(golden)

    before = trainer.evaluate(state, samples.x, samples.y, lambda: False)
    options = TrainOptions(2, 16, learning_rate=0.02, proximal_mu=MU, seed=4)
    result = trainer.train(state, samples.x, samples.y, options, lambda: False)
    after = trainer.evaluate(result.state, samples.x, samples.y, lambda: False)
    assert after.loss < before.loss

    def torch_training(dtype: torch.dtype) -> dict[str, np.ndarray]:
        network = create_loaded(task, state).to(dtype).train()
        anchor = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=spec.momentum)
        order = np.random.default_rng(4)
        for _ in range(2):
            rows = order.permutation(len(samples))
            for start in range(0, len(rows), 16):
                batch = rows[start : start + 16]
                optimizer.zero_grad()
                scores = network(torch.from_numpy(samples.x[batch]).to(dtype))
                torch.nn.functional.cross_entropy(scores, torch.from_numpy(samples.y[batch])).backward()
                for parameter, start_value in zip(network.parameters(), anchor, strict=True):
                    parameter.grad.add_(parameter.detach() - start_value, alpha=MU)
                optimizer.step()
        return {name: np.asarray(array, dtype=np.float64) for name, array in from_network(network).items()}

    exact, single = torch_training(torch.float64), torch_training(torch.float32)
    for name, array in result.state.items():
        ours = np.abs(np.asarray(array, dtype=np.float64) - exact[name]).max()
        # The yardstick is what float32 costs torch itself.
        yardstick = np.abs(single[name] - exact[name]).max()
        assert ours <= 10 * yardstick + 1e-6, name


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_any_batch_size(rows: int, trained: OnnxTrainer) -> None:
    task = load_task("digits")
    samples = task.source("central").take(np.arange(rows))
    result = trained.train(initial_parameters(task, 0), samples.x, samples.y, TrainOptions(1, 64, 0.01), lambda: False)
    assert (result.examples, result.steps) == (rows, 1)


@pytest.fixture(scope="module")
def trained() -> OnnxTrainer:
    task = load_task("digits")
    state, rows = initial_parameters(task, 0), task.source("central")
    step, _ = train_step_for(task, state, rows, None)
    return OnnxTrainer(step.model, step.spec, export_inference(task, state, rows.x).evaluate)
