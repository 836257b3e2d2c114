"""The smaller networks of a release: distilled, exported, quantised, proven and held to their own accuracy gate.

A rung that fails is left out with its reason; the release goes on without it, since it is about the release's own
network that somebody decided.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from skerry_contract.tensors import Array
from skerry_models.distill import distill
from skerry_models.export import export_inference
from skerry_models.forms import FP32, variant_name
from skerry_models.gates import GateLimits
from skerry_models.ladder import RungTask, rungs_of
from skerry_models.network_forms import NetworkForms, make_forms
from skerry_models.quantise import quantise
from skerry_models.task import Dataset, Float32, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ladder:
    """Smaller networks of a release.

    Attributes:
        networks: From the largest on; places count from 1 without gaps.
        left_out: Rung, or optional form of one, to why it is not there.
    """

    networks: tuple[NetworkForms, ...]
    left_out: dict[str, str]


def build_ladder(
    task: Task, state: Mapping[str, Array], own: NetworkForms, *, rows: Float32, training: Dataset, holdout: Dataset
) -> Ladder:
    """Make the ladder of a task; nothing for a task without one.

    Args:
        task: What is learned.
        state: Of the release's own network, the teacher.
        own: Its forms: what the rungs' accuracy is compared with.
        rows: float32 [N, *input], the golden rows.
        training: Rows to distil and calibrate on.
        holdout: Rows for the accuracies.

    Raises:
        ExportError: A rung's network cannot become an artifact.
        BundleError: A form of a rung is far off from its fp32.
        FloatingPointError: Distillation diverged.
    """
    networks: list[NetworkForms] = []
    left_out: dict[str, str] = {}
    for rung in rungs_of(task):
        small = RungTask(task, rung)
        student = distill(task, state, rung, training)
        graphs = export_inference(small, student, rows)
        quantised = quantise(graphs.infer, training.x)
        forms = make_forms(graphs.infer, quantised, rows, holdout, rung=rung.name, place=len(networks) + 1)
        reason = rung_reason(own, forms, accuracy_loss=rung.accuracy_loss)
        if reason:
            logger.warning("rung %s is left out: %s", rung.name, reason)
            left_out[rung.name] = reason
            continue
        networks.append(forms)
        left_out |= {variant_name(rung.name, name): text for name, text in forms.refused.items()}
    return Ladder(tuple(networks), left_out)


def rung_reason(own: NetworkForms, rung: NetworkForms, *, accuracy_loss: float) -> str:
    """Why a rung may not be released; empty if it may.

    Its fp32 form must be within ``accuracy_loss`` of the release's own, and its INT8 forms within the gate's limit of
    its fp32 form.
    """
    floor = own.evaluations[FP32].accuracy - accuracy_loss
    accuracy = rung.evaluations[FP32].accuracy
    if accuracy < floor - 1e-9:
        return f"accuracy {accuracy:.4f}, at least {floor:.4f}"
    for name, evaluation in rung.evaluations.items():
        limit = accuracy - GateLimits().int8_loss
        if evaluation.accuracy < limit - 1e-9:
            return f"accuracy {evaluation.accuracy:.4f} of {name}, at least {limit:.4f}"
    return ""
