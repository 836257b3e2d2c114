"""What trains and evaluates a model on the device, behind one protocol.

A *state* is every parameter and buffer of the network by its fully qualified name, in the order of the train step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import AgentError

Array = npt.NDArray[np.generic]
State = dict[str, Array]
Inputs = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

#: Asked before every step. True: wait and ask again. May raise :class:`TrainingInterruptedError`.
ShouldPause = Callable[[], bool]


class TrainingInterruptedError(AgentError):
    """Training ended before its last step; its result does not exist.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"training was interrupted: {reason}")


class TrainingDivergedError(AgentError):
    """The loss or a parameter stopped being a finite number; its result must not be used."""


@dataclass(frozen=True)
class TrainOptions:
    """How one round is trained.

    Attributes:
        local_epochs: Passes over the samples, at least 1.
        batch_size: Samples per step, at least 1; the last step of an epoch takes what is left.
        learning_rate: Of SGD with the momentum that the train step was exported with.
        proximal_mu: Weight of the FedProx term; 0 turns it off.
        seed: Of the order of the samples.
        correction: Added to the gradient of each named parameter in every step (SCAFFOLD's c - c_i, arXiv 1910.06378).
        frozen: Parameters and buffers that every step leaves as they are.
    """

    local_epochs: int
    batch_size: int
    learning_rate: float
    proximal_mu: float = 0.0
    seed: int = 0
    correction: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False)
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainResult:
    """A trained model.

    Attributes:
        state: Its parameters and buffers.
        examples: Samples of one epoch.
        steps: Gradient steps over all epochs.
        seconds: Wall-clock time, pauses included.
        loss: Mean loss per sample over the last epoch, each batch before its step.
    """

    state: State
    examples: int
    steps: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class EvaluationResult:
    """How good a model is on some samples.

    Attributes:
        examples: How many samples.
        accuracy: Fraction that was right.
        loss: Mean cross entropy (natural logarithm).
        squared_loss: Mean of the squares of the samples' cross entropies; -1 if it was not measured.
    """

    examples: int
    accuracy: float
    loss: float
    squared_loss: float = -1.0


class Trainer(Protocol):
    """Trains one network architecture."""

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the parameters that a gradient moves; the others are buffers."""
        ...

    @property
    def momentum(self) -> float:
        """Of its SGD, 0 to below 1."""
        ...

    def check_state(self, state: Mapping[str, Array]) -> None:
        """Raise InputError unless names, shapes, types and finiteness are those of the network."""
        ...

    def train(
        self, state: Mapping[str, Array], x: Inputs, y: Labels, options: TrainOptions, should_pause: ShouldPause
    ) -> TrainResult:
        """Train from ``state``; velocities start at zero in every call.

        Args:
            state: Model to start from; also the anchor of the FedProx term. Not changed.
            x: float32 [N, ...], N >= 1.
            y: int64 [N].
            options: How.
            should_pause: See :data:`ShouldPause`.

        Raises:
            InputError: The state or the samples do not fit the network.
            TrainingInterruptedError: ``should_pause`` said so.
            TrainingDivergedError: The result is not finite.
        """
        ...

    def evaluate(self, state: Mapping[str, Array], x: Inputs, y: Labels, should_pause: ShouldPause) -> EvaluationResult:
        """Measure ``state`` on samples, N >= 1; raises as :meth:`train`."""
        ...
