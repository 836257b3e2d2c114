"""Keeping a training step over releases: export takes longer than the rest of a bundle, and never depends on values.

A kept step is not believed but proven: its interface must be that of the network, and the golden step, which is checked
against torch in float64, must come out. Whatever fails is exported anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from skerry_contract.tensors import Array
from skerry_contract.v1.release_pb2 import GoldenStep, TrainStepSpec
from skerry_models import export_cache
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
    known = [("the parent release", kept)] if kept is not None else []
    found = _first_that_fits(task, state, rows, [*known, *_cached(task)])
    if found is not None:
        return found
    with export_cache.one_at_a_time(task, export_cache.TRAIN_STEP):
        found = _first_that_fits(task, state, rows, _cached(task))  # somebody else may have made it meanwhile
        if found is not None:
            return found
        model, spec = export_train_step(task)
        golden = golden_step(task, state, model, spec, rows)
        export_cache.write(task, export_cache.TRAIN_STEP, model, spec.SerializeToString(deterministic=True))
    return TrainStep(model, spec), golden


def _first_that_fits(
    task: Task, state: Mapping[str, Array], rows: Dataset, known: Iterable[tuple[str, TrainStep]]
) -> tuple[TrainStep, GoldenStep] | None:
    for name, step in known:
        try:
            _check_interface(task, state, step.spec)
            return step, golden_step(task, state, step.model, step.spec, rows)
        except (BundleError, ExportError, ParameterError) as error:
            logger.info("the training step of %s is not kept: %s", name, error)
    return None


def _cached(task: Task) -> list[tuple[str, TrainStep]]:
    """The step of this machine's cache, with where it comes from; nothing without one."""
    found = export_cache.read(task, export_cache.TRAIN_STEP)
    with contextlib.suppress(DecodeError):
        if found is not None:
            return [("an earlier export", TrainStep(found[0], TrainStepSpec.FromString(found[1])))]
    return []


def _check_interface(task: Task, state: Mapping[str, Array], spec: TrainStepSpec) -> None:
    described = {p.name: (p.dtype, tuple(p.shape)) for p in spec.parameters}
    actual = {name: (array.dtype.name, array.shape) for name, array in state.items()}
    if described != actual or list(described) != list(actual):
        raise ParameterError("parameters", expected="those of the kept step", got="others")
    if spec.momentum != task.default_training.momentum:
        raise ParameterError("momentum", expected=f"{task.default_training.momentum}", got=f"{spec.momentum}")
