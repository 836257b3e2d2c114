"""Keeping a training step over releases: export takes longer than the rest of a bundle, and never depends on values.

A kept step is not believed but proven: its interface must be that of the network, and the golden step, which is checked
against torch in float64, must come out. Whatever fails is exported anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from skerry_contract.tensors import Array
from skerry_contract.v1.release_pb2 import GoldenStep, TrainStepSpec
from skerry_models import step_cache
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
        kept: A step from an earlier release; without one this machine's cache is looked at before it is exported.

    Raises:
        ExportError: The network has no training step.
    """
    for name, step in _known(task, kept):
        try:
            _check_interface(task, state, step.spec)
            return step, golden_step(task, state, step.model, step.spec, rows)
        except (BundleError, ExportError, ParameterError) as error:
            logger.info("the training step of %s is not kept: %s", name, error)
    model, spec = export_train_step(task)
    golden = golden_step(task, state, model, spec, rows)
    step_cache.write(task, model, spec.SerializeToString(deterministic=True))
    return TrainStep(model, spec), golden


def _known(task: Task, kept: TrainStep | None) -> Iterator[tuple[str, TrainStep]]:
    """Steps that may do, with where they come from."""
    if kept is not None:
        yield "the parent release", kept
    found = step_cache.read(task)
    if found is not None:
        with contextlib.suppress(DecodeError):
            yield "an earlier export", TrainStep(found[0], TrainStepSpec.FromString(found[1]))


def _check_interface(task: Task, state: Mapping[str, Array], spec: TrainStepSpec) -> None:
    described = {p.name: (p.dtype, tuple(p.shape)) for p in spec.parameters}
    actual = {name: (array.dtype.name, array.shape) for name, array in state.items()}
    if described != actual or list(described) != list(actual):
        raise ParameterError("parameters", expected="those of the kept step", got="others")
    if spec.momentum != task.default_training.momentum:
        raise ParameterError("momentum", expected=f"{task.default_training.momentum}", got=f"{spec.momentum}")
