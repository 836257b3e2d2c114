"""A smaller network learns to answer like a larger one (Hinton, Vinyals, Dean, arXiv:1503.02531).

    loss = T^2 KL(softmax(teacher / T) || softmax(student / T)),  T = 2

No labels are used, so the student inherits the teacher's mistakes and whatever a campaign taught it. The work is
bounded by the rung's passes, and the result follows from the teacher's state, the rows and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from skerry_contract.tensors import Array
from skerry_models.fitting import create_optimiser, epoch_order, scheduled_rate
from skerry_models.ladder import Rung
from skerry_models.parameters import State, create_loaded, from_network
from skerry_models.task import Dataset, Float32, Task, training_rows

TEMPERATURE = 2.0


def distill(task: Task, state: Mapping[str, Array], rung: Rung, rows: Dataset, *, seed: int = 0) -> State:
    """State of a rung's network.

    Args:
        task: What is learned.
        state: Of the task's own network, the teacher.
        rung: The smaller network and how it is trained.
        rows: Raw rows; their labels are not looked at.
        seed: Of the weights and of the order of rows.

    Raises:
        ParameterError: The state does not fit the task.
        FloatingPointError: Training diverged.
        ValueError: No rows.
    """
    if not len(rows):
        raise ValueError("distillation needs rows")
    teacher, student, settings = create_loaded(task, state), rung.create(seed), rung.training
    optimiser = create_optimiser(student, settings)
    seen: Float32 | None = None
    for epoch in range(settings.epochs):
        view = training_rows(task, rows, epoch / settings.epochs).x
        if seen is None or not np.array_equal(view, seen):
            seen, answers = view, _answers(teacher, view, settings.batch_size)
        for group in optimiser.param_groups:
            group["lr"] = scheduled_rate(settings, epoch)
        order = epoch_order(len(view), seed=seed, epoch=epoch)
        _pass(student.train(), optimiser, view, answers, settings.batch_size, order)
    return from_network(student)


def _answers(teacher: torch.nn.Module, x: Float32, batch: int) -> torch.Tensor:
    """Softened class probabilities of the teacher: float32 [N, classes]."""
    with torch.no_grad():
        parts = [teacher(torch.from_numpy(np.array(x[start : start + batch]))) for start in range(0, len(x), batch)]
        return functional.softmax(torch.cat(parts) / TEMPERATURE, dim=1)


def _pass(
    student: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Float32,
    answers: torch.Tensor,
    batch: int,
    order: Array,
) -> None:
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        optimiser.zero_grad(set_to_none=True)
        scores = functional.log_softmax(student(torch.from_numpy(np.array(x[rows]))) / TEMPERATURE, dim=1)
        loss = functional.kl_div(scores, answers[rows], reduction="batchmean") * TEMPERATURE**2
        if not torch.isfinite(loss):
            raise FloatingPointError("distillation diverged: the loss is not finite")
        loss.backward()
        optimiser.step()
