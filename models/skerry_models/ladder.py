"""Smaller networks of a task, for moments when the release's own network is too slow.

A rung takes the same input and gives the same classes and drift features as the network above it. It is distilled from
that network when a release is built (:mod:`skerry_models.distill`), so a release is one set of parameters to train and
average, and the ladder follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from skerry_models.task import CampaignDefaults, Dataset, Float32, InputSpec, Task, TrainingDefaults

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rung:
    """A smaller network.

    Attributes:
        name: Short name, lower case letters, digits and dashes; its forms are called "<name>/<form>".
        create: Fresh network for a seed: raw rows to logits, as the task's own.
        training: How it is distilled.
        accuracy_loss: Largest accuracy on holdout that it may lose against the release's own network, as a share.
    """

    name: str
    create: Callable[[int], torch.nn.Module]
    training: TrainingDefaults
    accuracy_loss: float


@runtime_checkable
class Laddered(Protocol):
    """What a task with smaller networks provides beside :class:`~skerry_models.task.Task`."""

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The smaller networks, largest first."""
        ...


def rungs_of(task: Task) -> tuple[Rung, ...]:
    """Smaller networks of a task; most have none.

    Raises:
        ValueError: Two rungs have one name.
    """
    rungs = task.rungs if isinstance(task, Laddered) else ()
    names = [rung.name for rung in rungs]
    if len(set(names)) != len(names):
        raise ValueError(f"rungs of task {task.name} must have distinct names, got {names}")
    return rungs


@dataclass(frozen=True)
class RungTask:
    """A rung in place of its task: the same problem, data and drift features, another network.

    Attributes:
        task: The task.
        rung: The smaller network.
    """

    task: Task
    rung: Rung

    @property
    def name(self) -> str:
        """Task and rung."""
        return f"{self.task.name}-{self.rung.name}"

    @property
    def classes(self) -> tuple[str, ...]:
        """As the task's."""
        return self.task.classes

    @property
    def input(self) -> InputSpec:
        """As the task's."""
        return self.task.input

    @property
    def feature_names(self) -> tuple[str, ...]:
        """As the task's."""
        return self.task.feature_names

    @property
    def default_training(self) -> TrainingDefaults:
        """How it is distilled."""
        return self.rung.training

    @property
    def default_campaign(self) -> CampaignDefaults:
        """As the task's; no campaign trains a rung."""
        return self.task.default_campaign

    @property
    def drift_name(self) -> str:
        """As the task's."""
        return self.task.drift_name

    def create_network(self, seed: int) -> torch.nn.Module:
        """The smaller network."""
        return self.rung.create(seed)

    def create_features(self) -> torch.nn.Module:
        """As the task's."""
        return self.task.create_features()

    def source(self, name: str) -> Dataset:
        """As the task's."""
        return self.task.source(name)

    def client_names(self) -> tuple[str, ...]:
        """As the task's."""
        return self.task.client_names()

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """As the task's."""
        return self.task.apply_drift(x, seed)
