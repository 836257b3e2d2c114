"""Deterministic mini-batch training with torch: the loop that the cloud trainer wraps.

The order of rows depends on the seed and the epoch alone, so that a run that resumes at epoch k sees exactly the
batches that an uninterrupted run would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from skerry_contract.tensors import Array
from skerry_models.parameters import State, from_network, load_into
from skerry_models.task import Dataset, Int64, Task, TrainingDefaults, training_rows


@dataclass(frozen=True)
class EpochResult:
    """What one pass did.

    Attributes:
        epoch: Counted from 0.
        loss: Mean cross-entropy over the rows, nats, before each update.
        accuracy: Share of rows right before each update, 0 to 1.
        learning_rate: Step size of this pass.
    """

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float


def epoch_order(rows: int, *, seed: int, epoch: int) -> Int64:
    """Order of the rows in one epoch: int64 [rows], a permutation that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(rows).astype(np.int64)


def scheduled_rate(settings: TrainingDefaults, epoch: int) -> float:
    """Half a cosine from the peak to a twentieth of it (Loshchilov and Hutter, ICLR 2017)."""
    progress = epoch / max(1, settings.epochs - 1)
    floor = 0.05
    return settings.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + float(np.cos(np.pi * progress))))


def create_optimiser(network: torch.nn.Module, settings: TrainingDefaults) -> torch.optim.SGD:
    """SGD with momentum over the trainable parameters."""
    return torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=settings.momentum)


def train_epoch(
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    dataset: Dataset,
    settings: TrainingDefaults,
    *,
    seed: int,
    epoch: int,
    device: str = "cpu",
    rate: float | None = None,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> EpochResult:
    """One pass over the data, in place.

    Args:
        network: Already on ``device``.
        optimiser: Its step size is set from the schedule.
        dataset: Raw rows.
        settings: Batch size and schedule.
        seed: Of the whole run.
        epoch: Counted from 0.
        device: Torch device.
        rate: Step size of this pass; default: the cosine schedule's.
        autocast: Computes in this type where that is safe (mixed precision, Micikevicius et al., ICLR 2018); the
            parameters stay float32. None: float32 throughout.
        scaler: Scales the loss, which float16 needs and bfloat16 does not.

    Raises:
        FloatingPointError: The loss is no longer finite.
    """
    rate = scheduled_rate(settings, epoch) if rate is None else rate
    for group in optimiser.param_groups:
        group["lr"] = rate
    network.train()
    x = torch.from_numpy(np.array(dataset.x)).to(device)
    y = torch.from_numpy(np.array(dataset.y)).to(device)
    order = torch.from_numpy(epoch_order(len(dataset), seed=seed, epoch=epoch)).to(device)
    # Kept on the device: reading a number from it waits for every step before it.
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    hits = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, len(dataset), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.partition(":")[0], dtype=autocast, enabled=autocast is not None):
            scores = network(x[rows])
            loss = functional.cross_entropy(scores, y[rows])
        if scaler is None:
            loss.backward()
            optimiser.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
        loss_sum += loss.detach().double() * len(rows)
        hits += (scores.detach().argmax(1) == y[rows]).sum()
        # On a CPU it costs nothing to stop at the first step that diverged; elsewhere the end is soon enough.
        if device == "cpu":
            _check_finite(loss_sum, epoch, rate)
    _check_finite(loss_sum, epoch, rate)
    return EpochResult(
        epoch=epoch, loss=float(loss_sum) / len(dataset), accuracy=int(hits) / len(dataset), learning_rate=rate
    )


def _check_finite(loss_sum: torch.Tensor, epoch: int, rate: float) -> None:
    if not torch.isfinite(loss_sum):
        raise FloatingPointError(f"the loss of epoch {epoch} is not finite; learning rate {rate:g} is too high")


def fit(
    task: Task,
    dataset: Dataset,
    *,
    settings: TrainingDefaults | None = None,
    seed: int = 0,
    initial: Mapping[str, Array] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> State:
    """Train on the CPU from start to end.

    Args:
        task: What is learned.
        dataset: Raw rows, at least one.
        settings: Default: the task's.
        seed: Of the weights and of the order of rows.
        initial: State to start from (warm start); default: a fresh network.
        on_epoch: Called after every epoch.

    Returns:
        The state after the last epoch.

    Raises:
        ParameterError: ``initial`` does not fit the task.
        FloatingPointError: Training diverged.
        ValueError: The data set is empty.
    """
    if not len(dataset):
        raise ValueError("the data set is empty")
    chosen = settings or task.default_training
    network = task.create_network(seed)
    if initial is not None:
        load_into(network, initial)
    optimiser = create_optimiser(network, chosen)
    for epoch in range(chosen.epochs):
        rows = training_rows(task, dataset, epoch / chosen.epochs)
        result = train_epoch(network, optimiser, rows, chosen, seed=seed, epoch=epoch)
        if on_epoch is not None:
            on_epoch(result)
    return from_network(network)
