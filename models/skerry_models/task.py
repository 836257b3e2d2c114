"""The one description of what is learned.

A task is a small package that registers a factory under the entry point group ``skerry.tasks``:

    [project.entry-points."skerry.tasks"]
    digits = "skerry_models.tasks.digits:create"

Invariants: networks and features take raw units, float32 [batch, *input.shape]; data sources are deterministic, so
that "central", "holdout", "unseen" and every client are the same rows on every machine and never overlap.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from skerry_models.errors import DataError, TaskLoadError, UnknownTaskError

if TYPE_CHECKING:
    import torch

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

#: Entry point group of task factories.
GROUP = "skerry.tasks"
#: Rows that the cloud trains on.
CENTRAL = "central"
#: Rows that gates judge on; nobody trains on them.
HOLDOUT = "holdout"
#: Rows that neither training nor gates see: the honest final figure.
UNSEEN = "unseen"
#: Prefix of the sources that lie on devices.
CLIENT_PREFIX = "client/"


@dataclass(frozen=True)
class Dataset:
    """Labelled rows in raw units.

    Attributes:
        x: float32 [N, *input shape].
        y: int64 [N], class indices.
    """

    x: Float32
    y: Int64

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.y.dtype != np.int64:
            raise ValueError(f"a data set is float32 and int64, got {self.x.dtype} and {self.y.dtype}")
        if self.y.ndim != 1 or self.x.ndim < 2 or len(self.x) != len(self.y):
            raise ValueError(f"x {self.x.shape} and y {self.y.shape} do not belong together")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: npt.ArrayLike) -> Dataset:
        """Rows at ``indices`` (integers or a boolean mask), copied."""
        chosen = np.asarray(indices)
        return Dataset(np.ascontiguousarray(self.x[chosen]), np.ascontiguousarray(self.y[chosen]))

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Shuffle and cut in two.

        Args:
            fraction: Share of the first part, 0 to 1; rounded to whole rows.
            seed: Same seed, same parts.

        Raises:
            ValueError: ``fraction`` is outside 0 to 1.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must be 0 to 1, got {fraction}")
        order = np.random.default_rng(seed).permutation(len(self))
        cut = round(fraction * len(self))
        return self.take(order[:cut]), self.take(order[cut:])


def concatenate(parts: list[Dataset]) -> Dataset:
    """Rows of all parts, in order; at least one part."""
    return Dataset(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


@dataclass(frozen=True)
class InputSpec:
    """What one row of the data input looks like.

    Attributes:
        shape: Without the batch dimension.
        minimum: Smallest value that a device accepts, in ``unit``.
        maximum: Largest value that a device accepts.
        unit: Physical unit, for people.
    """

    shape: tuple[int, ...]
    minimum: float
    maximum: float
    unit: str


@dataclass(frozen=True)
class TrainingDefaults:
    """Central training: mini-batch SGD with momentum.

    Attributes:
        epochs: Passes over the data.
        batch_size: Rows per step.
        learning_rate: Peak step size.
        momentum: 0 to 1; also the momentum inside ``train_step.onnx``.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float


@dataclass(frozen=True)
class CampaignDefaults:
    """A federated campaign.

    Attributes:
        rounds: Global rounds.
        local_epochs: Passes over a device's rows per round.
        batch_size: Rows per local step.
        learning_rate: Step size of local SGD.
        proximal_mu: Weight of the FedProx term (Li et al., MLSys 2020); 0 is FedAvg.
    """

    rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    proximal_mu: float


@runtime_checkable
class Task(Protocol):
    """What a task package provides."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """Name as registered; lower case letters, digits and dashes."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        ...

    @property
    def input(self) -> InputSpec:
        """The data input."""
        ...

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the drift features, in the order of their columns."""
        ...

    @property
    def default_training(self) -> TrainingDefaults:
        """Central training."""
        ...

    @property
    def default_campaign(self) -> CampaignDefaults:
        """Federated training."""
        ...

    @property
    def drift_name(self) -> str:
        """Human name of the demonstration drift."""
        ...

    def create_network(self, seed: int) -> torch.nn.Module:
        """Fresh network: float32 [batch, *input.shape] raw -> float32 [batch, classes] logits.

        Preprocessing lies inside as constants that are no parameters. Same seed, same weights.
        """
        ...

    def create_features(self) -> torch.nn.Module:
        """Module without parameters: float32 [batch, *input.shape] raw -> float32 [batch, features]."""
        ...

    def source(self, name: str) -> Dataset:
        """Rows of "central", "holdout", "unseen" or "client/<name>".

        Raises:
            DataError: No such source, or its data is not on this machine.
        """
        ...

    def client_names(self) -> tuple[str, ...]:
        """Names of the clients, in a fixed order; no data is read."""
        ...

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """What the same rows look like after the demonstration drift.

        Args:
            x: float32 [N, *input.shape]; left alone.
            seed: One device; the same seed gives the same drift.
        """
        ...


@runtime_checkable
class TrainsPartly(Protocol):
    """What a task provides whose devices train a part of the network only."""

    def create_device_network(self, seed: int) -> torch.nn.Module:
        """As ``create_network``, with the same state, but only what devices train requires a gradient."""
        ...


@runtime_checkable
class TrainsOnViews(Protocol):
    """What a task provides whose network is trained centrally on other rows than it serves, parts of images say."""

    def training_rows(self, rows: Dataset, progress: float) -> Dataset:
        """Labelled rows for one pass of a central training, made from ``rows``; of any shape that the network takes.

        Args:
            rows: Raw rows.
            progress: Share of the passes that are done, 0 to less than 1.
        """
        ...


def create_device_network(task: Task, seed: int) -> torch.nn.Module:
    """Network as devices train it; most train all of it."""
    return task.create_device_network(seed) if isinstance(task, TrainsPartly) else task.create_network(seed)


def training_rows(task: Task, rows: Dataset, progress: float) -> Dataset:
    """What one pass of a central training learns from; most learn from the rows themselves, which are not copied."""
    return task.training_rows(rows, progress) if isinstance(task, TrainsOnViews) else rows


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def task_names() -> tuple[str, ...]:
    """Names of all registered tasks, sorted; no task is imported."""
    return tuple(_registered())


def check_source(task: str, name: str, known: Collection[str]) -> None:
    """Pass if a task has a source of that name; raises DataError that lists the ones it has."""
    if name not in known:
        raise DataError(
            f"task {task} has no source {name!r}",
            looked_for=[f"one of {', '.join(known)}"],
            remedy="use one of these names",
        )


@cache
def load_task(name: str) -> Task:
    """Import and create a task, once per process.

    Raises:
        UnknownTaskError: Nobody registers it.
        TaskLoadError: Its package fails to import, or does not make a task of that name.
    """
    points = _registered()
    if name not in points:
        raise UnknownTaskError(name, tuple(points))
    point = points[name]
    try:
        task = point.load()()
    except Exception as error:
        raise TaskLoadError(name, point.value, f"{type(error).__name__}: {error}") from error
    if not isinstance(task, Task) or task.name != name:
        raise TaskLoadError(name, point.value, f"expected a task named {name!r}, got {type(task).__name__}")
    return task
