"""A round's model judged as deployed: quantised as a bundle is, and measured in the forms that devices run.

When it is on, the best round and early stopping go by these figures and not by float32. Rounds that were not judged do
not compete. Choosing is pure; :class:`DeployedJudge` quantises and runs the graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from skerry_contract.tensors import Array
from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.federation.rounds.workshop import Judge

if TYPE_CHECKING:
    from skerry_models.task import Dataset, Task

logger = logging.getLogger(__name__)

#: Accuracy of the worst INT8 form on the holdout: the figure that decides.
ACCURACY: Final = "deployed_accuracy"
#: Figures of the best round that the candidate's metrics get.
RESULT_METRICS: Final = (
    ACCURACY,
    f"{ACCURACY}_drifted",
    f"{ACCURACY}_unseen",
    "deployed_agreement",
    "deployed_latency_p99_us",
    "deployed_latency_class",
)
#: Upper ends of the latency classes of one row (microseconds): below 1, 10 and 100 ms, and slower.
LATENCY_CLASSES_US: Final = (1_000.0, 10_000.0, 100_000.0)
_HOLDOUT = "holdout"


def cohorts_of(task: Task) -> dict[str, Dataset]:
    """Rows that the forms are measured on, by cohort.

    The holdout decides. Told beside it and never decided on: the holdout under the task's drift, and people that nobody
    trained on, where the task has such rows.
    """
    from skerry_models.errors import DataError
    from skerry_models.task import HOLDOUT, UNSEEN, Dataset

    holdout = task.source(HOLDOUT)
    cohorts = {_HOLDOUT: holdout, "drifted": Dataset(task.apply_drift(holdout.x, seed=0), holdout.y)}
    try:
        cohorts["unseen"] = task.source(UNSEEN)
    except DataError as error:
        logger.info("no rows of unseen people are judged: %s", error)
    return cohorts


class DeployedJudge:
    """Quantises a state and measures both INT8 forms."""

    def __init__(self, evaluate: bytes, calibration: Dataset, cohorts: Mapping[str, Dataset]) -> None:
        """Prepare.

        Args:
            evaluate: Bytes of the base release's evaluate.onnx.
            calibration: Rows that the INT8 ranges come from, as for a bundle.
            cohorts: Name to rows that accuracy is measured on; "holdout" is one of them.
        """
        if _HOLDOUT not in cohorts:
            raise ValueError("the cohorts must have a holdout")
        self._evaluate = evaluate
        self._calibration = calibration
        self._cohorts = dict(cohorts)

    def __call__(self, state: Mapping[str, Array]) -> dict[str, float]:
        """Figures of a state: accuracy per cohort (the worst form), agreement with float32, latency and its class."""
        from skerry_models.bound_graph import bind_parameters
        from skerry_models.evaluation import evaluate_scores, onnx_scores
        from skerry_models.latency import measure_latency
        from skerry_models.quantise import quantise

        infer = bind_parameters(self._evaluate, state)
        graphs = quantise(infer, self._calibration.x)
        forms = {"int8_qdq": graphs.canonical, "int8_x86": graphs.x86}
        holdout = self._cohorts[_HOLDOUT]
        plain = onnx_scores(infer, holdout.x).argmax(axis=1)
        figures: dict[str, float] = {}
        agreement, latency = 1.0, float("inf")
        for form, graph in forms.items():
            for cohort, rows in self._cohorts.items():
                scores = onnx_scores(graph, rows.x)
                accuracy = evaluate_scores(scores, rows.y).accuracy
                name = ACCURACY if cohort == _HOLDOUT else f"{ACCURACY}_{cohort}"
                figures[name] = min(figures.get(name, 1.0), accuracy)
                if cohort == _HOLDOUT:
                    figures[f"{ACCURACY}_{form}"] = accuracy
                    agreement = min(agreement, float((scores.argmax(axis=1) == plain).mean()))
            latency = min(latency, measure_latency(graph, holdout.x[:1], blocks=3, runs=40, warm_up=10).p99_us)
        figures["deployed_agreement"] = agreement
        figures["deployed_latency_p99_us"] = latency
        figures["deployed_latency_class"] = float(latency_class(latency))
        return figures


def latency_class(microseconds: float) -> int:
    """0 to 3: which of :data:`LATENCY_CLASSES_US` a duration stays below; 3 for none."""
    return sum(microseconds >= limit for limit in LATENCY_CLASSES_US)


def base_figure(judge: Judge | None, state: Mapping[str, Array], accuracy: float) -> float:
    """The figure that rounds are held against: the base model's, in the form in which rounds are judged."""
    return accuracy if judge is None else judge(state)[ACCURACY]


def figures(rounds: Sequence[RoundRecord], *, judged: bool) -> list[tuple[int, float]]:
    """Round and the figure that decides, of the rounds that have one, in order; a skipped round has none."""
    if not judged:
        return [(record.number, record.accuracy) for record in rounds if not record.skipped]
    return [(record.number, record.metrics[ACCURACY]) for record in rounds if ACCURACY in record.metrics]


def competing(rounds: Sequence[RoundRecord], *, judged: bool) -> list[RoundRecord]:
    """The rounds that may become the result, each with the figure that decides as its accuracy.

    A campaign that ended before any round was judged falls back to float32.
    """
    decided = dict(figures(rounds, judged=judged))
    if not decided:
        return [record for record in rounds if not record.skipped]
    return [replace(record, accuracy=decided[record.number]) for record in rounds if record.number in decided]
