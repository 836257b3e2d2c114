"""Carries out what a campaign asks of this device. Knows nothing of Flower.

A refusal (:class:`RefusedError`) is an answer: the control plane hears the reason and, if it is final, does not ask
again in that round.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from skerry_agent.errors import AgentError, ArtifactError, InputError
from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.split import SplitSamples, split_samples
from skerry_agent.training.trainer import (
    EvaluationResult,
    Inputs,
    Labels,
    ShouldPause,
    State,
    TrainingDivergedError,
    TrainingInterruptedError,
    TrainOptions,
)
from skerry_contract.campaign import EvaluateInstruction, EvaluateReply, TrainInstruction, TrainReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import decode_bundle, encode_bundle

logger = logging.getLogger(__name__)


class RefusedError(AgentError):
    """This device will not do what the campaign asks.

    Attributes:
        reason: Told to the control plane.
        final: Asking again in the same round does not help; false when the device was only interrupted.
    """

    def __init__(self, reason: str, *, final: bool = True) -> None:
        self.reason = reason
        self.final = final
        super().__init__(reason)


class SampleSource(Protocol):
    """Where labelled samples come from: the labelled store."""

    def load(self) -> tuple[Inputs, Labels]:
        """float32 [N, ...] and int64 [N]."""
        ...


class BundleSource(Protocol):
    """Where proven trainers come from."""

    def open(self, train_step_sha256: str) -> TrainingBundle:
        """Raises ArtifactError."""
        ...


class PauseGate:
    """Says when training must wait: while the policy's file exists, until the deadline, never after a stop."""

    def __init__(self, pause_file: Path, stopping: Callable[[], bool]) -> None:
        """``pause_file`` is made and removed by the policy; ``stopping`` turns true when the process must end."""
        self._pause_file = pause_file
        self._stopping = stopping

    def until(self, deadline: float) -> ShouldPause:
        """The question that a trainer asks before each step; ``deadline`` is a time of ``time.monotonic``."""

        def should_pause() -> bool:
            if self._stopping():
                raise TrainingInterruptedError("the agent is stopping")
            if time.monotonic() > deadline:
                raise TrainingInterruptedError("the deadline of the round has passed")
            return self._pause_file.exists()

        return should_pause


class CampaignWorker:
    """Trains and evaluates for campaigns; called by one thread."""

    def __init__(
        self,
        device_id: str,
        bundles: BundleSource,
        samples: SampleSource,
        gate: PauseGate,
        *,
        on_busy: Callable[[str], None] = lambda detail: None,
    ) -> None:
        """``on_busy`` hears what is being done, and an empty text when it is over."""
        self._device_id = device_id
        self._bundles = bundles
        self._samples = samples
        self._gate = gate
        self._on_busy = on_busy

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """Train one round.

        Raises:
            RefusedError: Wrong train step, too few samples, bad parameters, interrupted or diverged.
        """
        deadline = time.monotonic() + instruction.deadline_ms / 1000
        self._on_busy(f"campaign {instruction.campaign_id} round {instruction.round}")
        try:
            return self._train(instruction, self._gate.until(deadline))
        except TrainingInterruptedError as error:
            raise RefusedError(str(error), final=False) from error
        except (ArtifactError, InputError, WireError, TrainingDivergedError) as error:
            raise RefusedError(str(error)) from error
        finally:
            self._on_busy("")

    def _train(self, instruction: TrainInstruction, should_pause: ShouldPause) -> TrainReply:
        bundle = self._open(instruction.train_step_sha256, instruction.task)
        samples = self._load(instruction.minimum_samples)
        state = decode_bundle(instruction.parameters)
        received = self._validate(bundle, state, samples, should_pause)
        result = bundle.trainer.train(
            state,
            samples.train_x,
            samples.train_y,
            TrainOptions(
                local_epochs=instruction.local_epochs,
                batch_size=instruction.batch_size,
                learning_rate=instruction.learning_rate,
                proximal_mu=instruction.proximal_mu,
                seed=_own_seed(instruction.seed, self._device_id),
            ),
            should_pause,
        )
        logger.info(
            "campaign %s round %d: %d steps on %d samples in %.2f s, loss %.4f",
            instruction.campaign_id,
            instruction.round,
            result.steps,
            result.examples,
            result.seconds,
            result.loss,
        )
        return TrainReply(
            device_id=self._device_id,
            examples=result.examples,
            steps=result.steps,
            seconds=result.seconds,
            loss=result.loss,
            validation_examples=received.examples,
            validation_accuracy=received.accuracy,
            validation_loss=received.loss,
            parameters=encode_bundle(result.state),
        )

    def evaluate(self, instruction: EvaluateInstruction) -> EvaluateReply:
        """Measure a model on the validation split; raises RefusedError as :meth:`train`."""
        deadline = time.monotonic() + instruction.deadline_ms / 1000
        self._on_busy(f"campaign {instruction.campaign_id} evaluation")
        try:
            bundle = self._open(instruction.train_step_sha256, instruction.task)
            samples = self._load(minimum=2)
            result = self._validate(bundle, decode_bundle(instruction.parameters), samples, self._gate.until(deadline))
        except TrainingInterruptedError as error:
            raise RefusedError(str(error), final=False) from error
        except (ArtifactError, InputError, WireError, TrainingDivergedError) as error:
            raise RefusedError(str(error)) from error
        finally:
            self._on_busy("")
        return EvaluateReply(
            device_id=self._device_id, examples=result.examples, accuracy=result.accuracy, loss=result.loss
        )

    def _open(self, train_step_sha256: str, task: str) -> TrainingBundle:
        bundle = self._bundles.open(train_step_sha256)
        if bundle.task != task:
            raise RefusedError(f"train step {train_step_sha256[:12]} belongs to task {bundle.task}, not {task}")
        return bundle

    def _load(self, minimum: int) -> SplitSamples:
        x, y = self._samples.load()
        if len(x) < max(2, minimum):
            raise RefusedError(f"{len(x)} labelled samples are fewer than {max(2, minimum)}")
        return split_samples(x, y)

    def _validate(
        self,
        bundle: TrainingBundle,
        state: State,
        samples: SplitSamples,
        should_pause: ShouldPause,
    ) -> EvaluationResult:
        return bundle.trainer.evaluate(state, samples.validation_x, samples.validation_y, should_pause)


def _own_seed(seed: int, device_id: str) -> int:
    """The campaign sends one seed to all devices; each shuffles in its own order."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{device_id}".encode(), digest_size=7).digest(), "little")
