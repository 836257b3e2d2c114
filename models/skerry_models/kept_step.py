"""Keeping a training step over releases: export takes longer than the rest of a bundle, and never depends on values.

A kept step is not believed but proven: its interface must be that of the network, and the golden step, which is checked
against torch in float64, must come out. Whatever fails is exported anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from skerry_contract.tensors import Array
from skerry_contract.v1.release_pb2 import GoldenStep, TrainStepSpec
from skerry_models.errors import BundleError, ExportError, ParameterError
from skerry_models.task import Dataset, Task
from skerry_models.train_step import export_train_step, golden_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainStep:
    """A training step.

    Attributes:
        model: train_step.onnx.
        spec: How it is fed.
    """

    model: bytes
    spec: TrainStepSpec


def train_step_for(
    task: Task, state: Mapping[str, Array], rows: Dataset, kept: TrainStep | None
) -> tuple[TrainStep, GoldenStep]:
    """The step of a task's network and its golden step.

    Args:
        task: What is learned.
        state: Parameters.
        rows: Raw rows for the golden step.
        kept: A step from an earlier release; None to export.

    Raises:
        ExportError: The network has no training step.
    """
    if kept is not None:
        try:
            _check_interface(task, state, kept.spec)
            return kept, golden_step(task, state, kept.model, kept.spec, rows)
        except (BundleError, ExportError, ParameterError) as error:
            logger.info("the training step of the parent release is not kept: %s", error)
    model, spec = export_train_step(task)
    return TrainStep(model, spec), golden_step(task, state, model, spec, rows)


def _check_interface(task: Task, state: Mapping[str, Array], spec: TrainStepSpec) -> None:
    described = {p.name: (p.dtype, tuple(p.shape)) for p in spec.parameters}
    actual = {name: (array.dtype.name, array.shape) for name, array in state.items()}
    if described != actual or list(described) != list(actual):
        raise ParameterError("parameters", expected="those of the kept step", got="others")
    if spec.momentum != task.default_training.momentum:
        raise ParameterError("momentum", expected=f"{task.default_training.momentum}", got=f"{spec.momentum}")
