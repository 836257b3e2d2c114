"""Which parameters of its own serve a device best under a release, measured on samples that nothing was trained on.

What is compared with the release: the own parameters as campaigns left them, or as they answered under the release
before; the same, fitted to this release; and, if none of them is better, the release's own values, fitted. Fitting
moves the own parameters alone, everything else is frozen (the personal layers of FedPer, arXiv 1912.00818, trained on a
fixed representation as in FedRep, arXiv 2102.07078). The best of at most three is chosen on the samples that the proof
is then read from, which flatters it by a little; it is measured anew as labels come.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from skerry_agent.training.personal import with_own
from skerry_agent.training.split import SplitSamples
from skerry_agent.training.trainer import (
    Array,
    EvaluationResult,
    ShouldPause,
    State,
    Trainer,
    TrainingDivergedError,
    TrainOptions,
)

logger = logging.getLogger(__name__)

#: Where parameters come from.
CAMPAIGN, CARRIED, TUNED, RELEASE_TUNED = "campaign", "carried", "tuned", "release-tuned"
#: How they are fitted: SGD with the momentum of the train step.
EPOCHS, BATCH, LEARNING_RATE = 10, 16, 0.02


@dataclass(frozen=True)
class Comparison:
    """The best own parameters and what they are compared with.

    Attributes:
        own: The parameters.
        origin: Where they come from.
        released: The release as it was signed, on the validation samples.
        personal: The release with them, on the same samples.
    """

    own: State
    origin: str
    released: EvaluationResult
    personal: EvaluationResult


def better(one: EvaluationResult, other: EvaluationResult) -> bool:
    """More often right, or as often and more surely."""
    return (one.accuracy, -one.loss) > (other.accuracy, -other.loss)


def compare(
    trainer: Trainer,
    release: Mapping[str, Array],
    own: Mapping[str, Array],
    names: Collection[str],
    samples: SplitSamples,
    should_pause: ShouldPause,
    *,
    origin: str = CAMPAIGN,
    seed: int = 0,
) -> Comparison:
    """Find the best own parameters.

    Args:
        trainer: Of the release's network.
        release: All of its parameters.
        own: The device's values of some of ``names``; empty if it has none yet.
        names: Which parameters may be its own, at least one.
        samples: Validation samples are only measured.
        should_pause: Asked before every step.
        origin: Where ``own`` comes from.
        seed: Of the order of the samples.

    Raises:
        InputError: The samples do not fit the network.
        TrainingInterruptedError: ``should_pause`` said so.
        TrainingDivergedError: The release itself gives no finite loss.
    """

    def measure(values: Mapping[str, Array]) -> EvaluationResult:
        return trainer.evaluate(with_own(release, values), samples.validation_x, samples.validation_y, should_pause)

    def fit(values: Mapping[str, Array]) -> State:
        options = TrainOptions(EPOCHS, BATCH, LEARNING_RATE, seed=seed, frozen=frozenset(release) - frozenset(names))
        fitted = trainer.train(with_own(release, values), samples.train_x, samples.train_y, options, should_pause).state
        return {name: array for name, array in fitted.items() if name in names}

    released = trainer.evaluate(release, samples.validation_x, samples.validation_y, should_pause)
    found: list[Comparison] = []
    try:
        if own:
            found.append(Comparison(dict(own), origin, released, measure(own)))
            values = fit(own)
            found.append(Comparison(values, TUNED, released, measure(values)))
        if not any(better(each.personal, released) for each in found):
            values = fit({})
            found.append(Comparison(values, RELEASE_TUNED, released, measure(values)))
    except TrainingDivergedError as error:
        if not found:
            raise
        logger.info("own parameters cannot be fitted further: %s", error)
    return max(found, key=lambda each: (each.personal.accuracy, -each.personal.loss))
