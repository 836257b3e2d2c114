"""One round of training on this device, before anything is encoded: measure, put the own parameters in, train, measure.

The model as received is measured on the validation split, which tells the campaign how good it is here, and how large
the loss is (Oort, arXiv 2010.06081, takes the squared loss of training samples; the validation split is of the same
distribution and costs no second pass). Parameters that stay on the device replace the received ones before training and
are kept after it. The device's own model is the received one with the own parameters as training left them: what the
device would answer with if this model were its release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.control_variates import change, check_control, correction, next_variate, own_variate
from skerry_agent.training.personal import PersonalParameters, parse_patterns, personal_names, with_own
from skerry_agent.training.split import SplitSamples
from skerry_agent.training.trainer import Array, EvaluationResult, ShouldPause, State, TrainOptions, TrainResult
from skerry_contract.campaign import TrainInstruction
from skerry_contract.tensors import decode_bundle


@dataclass(frozen=True)
class Question:
    """What a round starts from.

    Attributes:
        instruction: How to train.
        model: The received model.
        own_control: The device's control variate as kept; empty for none.
        seed: Of the order of the samples.
    """

    instruction: TrainInstruction
    model: State
    own_control: Mapping[str, Array]
    seed: int


@dataclass(frozen=True)
class LocalUpdate:
    """What a round brought.

    Attributes:
        model: The received model without what stays on the device.
        state: The same tensors after training.
        result: Of the training.
        received: Of the whole received model on the validation split.
        personal_accuracy: Of the device's own model on that split; -1 if nothing stays on the device.
        control_change: For the server, with the names of its control variate; empty without.
        own_control: The device's new control variate; empty without.
    """

    model: State
    state: State
    result: TrainResult
    received: EvaluationResult
    personal_accuracy: float = -1.0
    control_change: State = field(default_factory=dict)
    own_control: State = field(default_factory=dict)


def train_locally(
    bundle: TrainingBundle,
    question: Question,
    samples: SplitSamples,
    personal: PersonalParameters,
    should_pause: ShouldPause,
) -> LocalUpdate:
    """Train one round.

    Raises:
        InputError: The model or the samples do not fit the network.
        WireError: Broken patterns or control variate.
        TrainingInterruptedError: ``should_pause`` said so.
        TrainingDivergedError: The result is not finite.
    """
    instruction, trainer = question.instruction, bundle.trainer
    received = trainer.evaluate(question.model, samples.validation_x, samples.validation_y, should_pause)
    own_names = personal_names(question.model, parse_patterns(instruction.personal))
    start = with_own(question.model, personal.load(bundle.task, question.model, own_names) if own_names else {})
    control = decode_bundle(instruction.control) if instruction.control else {}
    server, own = _variates(question, control, sorted(trainer.trainable - own_names))
    options = TrainOptions(
        local_epochs=instruction.local_epochs,
        batch_size=instruction.batch_size,
        learning_rate=instruction.learning_rate,
        proximal_mu=instruction.proximal_mu,
        seed=question.seed,
        correction=correction(server, own),
    )
    result = trainer.train(start, samples.train_x, samples.train_y, options, should_pause)
    accuracy = -1.0
    if own_names:
        kept = {name: array for name, array in result.state.items() if name in own_names}
        own_model = with_own(question.model, kept)
        accuracy = trainer.evaluate(own_model, samples.validation_x, samples.validation_y, should_pause).accuracy
        personal.keep(bundle.task, kept)
    following: State = {}
    if control:
        following = next_variate(
            server,
            own,
            start,
            result.state,
            steps=result.steps,
            learning_rate=instruction.learning_rate,
            momentum=trainer.momentum,
        )
    return LocalUpdate(
        model={name: array for name, array in question.model.items() if name not in own_names},
        state={name: array for name, array in result.state.items() if name not in own_names},
        result=result,
        received=received,
        personal_accuracy=accuracy,
        control_change=change(following, own, control),
        own_control=following,
    )


def _variates(question: Question, control: Mapping[str, Array], names: list[str]) -> tuple[State, State]:
    """The server's and the device's variate of the parameters that are corrected; empty without a server's."""
    if not control:
        return {}, {}
    server = check_control(control, question.model, names)
    return server, own_variate(question.own_control, server)
