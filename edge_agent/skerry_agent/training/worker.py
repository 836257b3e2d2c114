"""Carries out what a campaign asks of this device. Knows nothing of Flower.

A refusal (:class:`RefusedError`) is an answer: the control plane hears the reason and, if it is final, does not ask
again in that round. What a round leaves behind on the device (residual, control variate) is written down before its
answer leaves: :mod:`skerry_agent.training.campaign_journal`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from skerry_agent.errors import AgentError, ArtifactError, DeviceError, InputError
from skerry_agent.training.bundle import StepMissingError, TrainingBundle
from skerry_agent.training.campaign_journal import Carried, JournalError, RoundRecord, question_digest
from skerry_agent.training.device_state import DeviceState
from skerry_agent.training.fresh import FreshSamples
from skerry_agent.training.local_privacy import noised, withheld
from skerry_agent.training.local_round import LocalUpdate, Question, train_locally
from skerry_agent.training.pause_gate import PauseGate
from skerry_agent.training.personal import parse_patterns, personal_names, with_own
from skerry_agent.training.residuals import EncodedUpdate, Noise, Wire, encode_update, fitting_residual
from skerry_agent.training.round_models import MissingBaseError, ReceivedModel
from skerry_agent.training.split import SplitSamples, split_samples
from skerry_agent.training.trainer import (
    Array,
    Inputs,
    Labels,
    ShouldPause,
    TrainingDivergedError,
    TrainingInterruptedError,
)
from skerry_contract.campaign import (
    EVALUATE,
    TRAIN,
    EvaluateInstruction,
    EvaluateReply,
    Scalar,
    TrainInstruction,
    TrainReply,
)
from skerry_contract.counted import counted_round
from skerry_contract.errors import WireError
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference

__all__ = ["BundleSource", "CampaignWorker", "Handler", "PauseGate", "RefusedError", "Runner", "SampleSource"]

logger = logging.getLogger(__name__)

R = TypeVar("R")

#: Answers one kind of question: fields from the wire to fields; raises RefusedError or WireError.
Handler = Callable[[Mapping[str, object]], Mapping[str, Scalar]]


class Runner(Protocol):
    """Runs an action, perhaps on another thread, and waits for it."""

    def __call__(self, action: Callable[[], R], /) -> R:
        """Its result, or what it raises."""
        ...


def _here(action: Callable[[], R], /) -> R:
    return action()


class RefusedError(AgentError):
    """This device will not do what the campaign asks.

    Attributes:
        reason: Told to the control plane.
        final: Asking again in the same round does not help; false when the device was only interrupted.
    """

    def __init__(self, reason: str, *, final: bool = True, code: str = "") -> None:
        """``code`` is one of :data:`skerry_contract.campaign.STAY_OUT`, or empty; the reason begins with it."""
        self.reason = f"{code}: {reason}" if code else reason
        self.final = final
        super().__init__(self.reason)


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
        state: DeviceState | None = None,
        fresh: FreshSamples | None = None,
        run: Runner | None = None,
    ) -> None:
        """Prepare.

        Args:
            device_id: Who this is.
            bundles: Where trainers come from.
            samples: Where labelled samples come from.
            gate: When training waits.
            on_busy: Hears what is being done, and an empty text when it is over.
            state: What is kept between rounds; in memory if it is not given.
            fresh: Hears which samples an answer was made of.
            run: Does the computing: on a thread of low priority; without one, here.
        """
        self._device_id = device_id
        self._bundles = bundles
        self._samples = samples
        self._gate = gate
        self._on_busy = on_busy
        self._state = state or DeviceState.open(None)
        self._fresh = fresh
        self._run = run or _here
        self._handlers: dict[str, Handler] = {
            TRAIN: lambda fields: self.train(TrainInstruction.from_fields(fields)).to_fields(),
            EVALUATE: lambda fields: self.evaluate(EvaluateInstruction.from_fields(fields)).to_fields(),
        }

    def add_handlers(self, handlers: Mapping[str, Handler]) -> None:
        """Answer further kinds of questions, such as those of secure aggregation."""
        self._handlers.update(handlers)

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        """Answer a message.

        Raises:
            RefusedError: This device will not, or does not know the kind.
            WireError: The fields are broken.
        """
        handler = self._handlers.get(kind)
        if handler is None:
            raise RefusedError(f"messages of type {kind[:80]!r} are not known here")
        return handler(fields)

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """Train one round, or give the answer again that the device has given to the same question.

        Raises:
            RefusedError: Wrong train step, too few samples, bad parameters, a base model that is not here, no room to
                write down what must not be lost, interrupted or diverged.
        """
        with self.working(_round(instruction), instruction.deadline_ms) as pause:
            if instruction.noise_std and instruction.control:
                raise RefusedError("a control variate tells what local noise hides")
            bundle = self.open_bundle(instruction.train_step_sha256, instruction.task)
            counted = counted_round(instruction.counted, instruction.campaign_id, self._device_id)
            if self._fresh is not None:
                self._fresh.heard(instruction.campaign_id, counted)
            model = self._receive(instruction)
            if _leaves_nothing(instruction) and not self._state.journal.has(instruction.campaign_id):
                update = self._learn(instruction, bundle, model, Carried(), pause)
                reply = self._reply(update, self._encode(instruction, update, {}))
            else:
                reply = self._journalled(instruction, bundle, model, counted, pause)
            if self._fresh is not None:
                self._fresh.answered(instruction.campaign_id, instruction.round)
            return reply

    def received(self, instruction: TrainInstruction) -> Mapping[str, Array]:
        """The model that an instruction carries, as :meth:`train` decodes it.

        Raises:
            RefusedError: It is a difference from a model that is not here, or broken.
        """
        try:
            return self._receive(instruction).state
        except MissingBaseError as error:
            raise RefusedError(str(error), final=False) from error
        except WireError as error:
            raise RefusedError(str(error)) from error

    def evaluate(self, instruction: EvaluateInstruction) -> EvaluateReply:
        """Measure a model on the validation split; raises RefusedError as :meth:`train`."""
        with self.working(f"campaign {instruction.campaign_id} evaluation", instruction.deadline_ms) as pause:
            bundle = self.open_bundle(instruction.train_step_sha256, instruction.task)
            samples = self._load(minimum=2)
            model = decode_bundle(instruction.parameters)
            evaluate, x, y = bundle.trainer.evaluate, samples.validation_x, samples.validation_y
            result = self._run(lambda: evaluate(model, x, y, pause))
            own = self._state.personal.load(instruction.task, model)
            personal = -1.0
            if own:
                personal = self._run(lambda: evaluate(with_own(model, own), x, y, pause)).accuracy
        if instruction.last:
            self._state.journal.forget(instruction.campaign_id)
            self._state.models.forget()
        return EvaluateReply(
            device_id=self._device_id,
            examples=result.examples,
            accuracy=result.accuracy,
            loss=result.loss,
            personal_accuracy=personal,
        )

    @contextmanager
    def working(self, detail: str, deadline_ms: int) -> Iterator[ShouldPause]:
        """Tells that the device is busy, gives the question whether to pause, and turns errors into refusals."""
        self._on_busy(detail)
        try:
            yield self._gate.until(time.monotonic() + deadline_ms / 1000)
        except TrainingInterruptedError as error:
            raise RefusedError(error.reason, final=False) from error
        except (MissingBaseError, DeviceError) as error:
            raise RefusedError(str(error), final=False) from error
        except (ArtifactError, InputError, WireError, TrainingDivergedError) as error:
            raise RefusedError(str(error)) from error
        finally:
            self._on_busy("")

    def _receive(self, instruction: TrainInstruction) -> ReceivedModel:
        return self._state.models.receive(instruction.parameters, instruction.parameters_wire, instruction.base_sha256)

    def _journalled(
        self,
        instruction: TrainInstruction,
        bundle: TrainingBundle,
        model: ReceivedModel,
        counted: int | None,
        pause: ShouldPause,
    ) -> TrainReply:
        """A round that leaves something on the device, or finds something there."""
        journal = self._state.journal
        question = question_digest(instruction, model.sha256)
        decision = journal.decide(instruction, question, counted)
        if decision.repeat:
            record = journal.record(instruction.campaign_id, decision.repeat)
            if record is not None:
                logger.info("campaign %s round %d: the same answer again", instruction.campaign_id, instruction.round)
                own = personal_names(model.state, parse_patterns(instruction.personal))
                shared = {name: array for name, array in model.state.items() if name not in own}
                return _in_wire(record.reply, instruction.wire, shared)
        if instruction.noise_std and decision.answered and (counted or 0) < instruction.round:
            raise RefusedError(f"round {instruction.round} has this device's noised answer to another question")
        journal.drop(instruction.campaign_id, decision.drop)
        carried = journal.carried(instruction.campaign_id, decision.base)
        update = self._learn(instruction, bundle, model, carried, pause)
        encoded = self._encode(instruction, update, carried.residual)
        reply = self._reply(update, encoded)
        if instruction.noise_std:
            reply = withheld(reply)
        after = Carried(encoded.residual, update.own_control)
        record = RoundRecord(instruction.round, question, reply, after)
        try:
            journal.keep(instruction.campaign_id, record, base=decision.base)
        except JournalError as error:
            if instruction.control or instruction.noise_std:
                # A variate that the server counts and the device forgets, or noise that is drawn twice: rather nothing.
                raise RefusedError(str(error), final=False) from error
            logger.warning("campaign %s: %s; the whole model is sent", instruction.campaign_id, error)
            reply = self._reply(update, self._encode(replace(instruction, wire="float32"), update, carried.residual))
            journal.forget(instruction.campaign_id)
        return reply

    def _learn(
        self,
        instruction: TrainInstruction,
        bundle: TrainingBundle,
        model: ReceivedModel,
        carried: Carried,
        pause: ShouldPause,
    ) -> LocalUpdate:
        samples = self._load(instruction.minimum_samples)
        question = Question(instruction, model.state, carried.control, _own_seed(instruction.seed, self._device_id))
        update = self._run(lambda: train_locally(bundle, question, samples, self._state.personal, pause))
        logger.info(
            "campaign %s round %d: %d steps on %d samples in %.2f s, loss %.4f",
            instruction.campaign_id,
            instruction.round,
            update.result.steps,
            update.result.examples,
            update.result.seconds,
            update.result.loss,
        )
        return update

    def _encode(
        self, instruction: TrainInstruction, update: LocalUpdate, residual: Mapping[str, Array]
    ) -> EncodedUpdate:
        wire = Wire(
            instruction.wire, instruction.density, _own_seed(instruction.seed, f"{self._device_id}:{instruction.round}")
        )
        try:
            encoded = self._run(
                lambda: encode_update(
                    update.state,
                    update.model,
                    wire,
                    residual=fitting_residual(residual, update.model),
                    clip_norm=instruction.clip_norm,
                    noise=_noise(instruction),
                )
            )
        except ValueError as error:
            raise TrainingDivergedError(str(error)) from error
        if not math.isfinite(encoded.norm):
            raise TrainingDivergedError(f"the update has the norm {encoded.norm}")
        return encoded

    def _reply(self, update: LocalUpdate, encoded: EncodedUpdate) -> TrainReply:
        return TrainReply(
            device_id=self._device_id,
            examples=update.result.examples,
            steps=update.result.steps,
            seconds=update.result.seconds,
            loss=update.result.loss,
            validation_examples=update.received.examples,
            validation_accuracy=update.received.accuracy,
            validation_loss=update.received.loss,
            parameters=encoded.parameters,
            wire=encoded.wire,
            norm=min(encoded.norm, 1e30),
            squared_loss=min(update.received.squared_loss, 1e30),
            control=encode_bundle(update.control_change) if update.control_change else b"",
            personal_accuracy=update.personal_accuracy,
        )

    def open_bundle(self, train_step_sha256: str, task: str) -> TrainingBundle:
        """The bundle with that train step; raises RefusedError."""
        try:
            bundle = self._bundles.open(train_step_sha256)
        except StepMissingError as error:
            raise RefusedError(error.reason, code=error.code) from error
        if bundle.task != task:
            raise RefusedError(
                f"train step {train_step_sha256[:12]} belongs to task {bundle.task}, not {task}", code="other-task"
            )
        return bundle

    def _load(self, minimum: int) -> SplitSamples:
        if self._fresh is not None:
            self._fresh.loading()
        x, y = self._samples.load()
        if len(x) < max(2, minimum):
            raise RefusedError(f"{len(x)} labelled samples are fewer than {max(2, minimum)}", code="few-samples")
        return split_samples(x, y)


def _own_seed(seed: int, device_id: str) -> int:
    """The campaign sends one seed to all devices; each shuffles in its own order."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{device_id}".encode(), digest_size=7).digest(), "little")


def _round(instruction: TrainInstruction) -> str:
    return f"campaign {instruction.campaign_id} round {instruction.round}"


def _noise(instruction: TrainInstruction) -> Noise | None:
    """Clips and noises as the instruction says; None if it asks for no noise."""
    if not instruction.noise_std:
        return None
    return partial(noised, clip_norm=instruction.clip_norm, noise_std=instruction.noise_std)


def _leaves_nothing(instruction: TrainInstruction) -> bool:
    """Whether a round has neither residual nor control variate nor noise that must be drawn once only."""
    return instruction.wire == "float32" and not instruction.control and not instruction.noise_std


def _in_wire(reply: TrainReply, wire: str, model: Mapping[str, Array]) -> TrainReply:
    """A kept answer for a server that may want it in another encoding: the same values as a whole model.

    What the answer's own encoding has lost stays lost, and is in the residual that was kept with it.
    """
    if reply.wire in (wire, "float32"):
        return reply
    moved = apply_difference(model, decode_difference(reply.parameters, model, wire=reply.wire))
    return replace(reply, parameters=encode_bundle(moved), wire="float32")
