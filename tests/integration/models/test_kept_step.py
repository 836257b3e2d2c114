"""A training step is kept over releases while it is right, and exported anew when it is not."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper

from skerry_models.kept_step import TrainStep, train_step_for
from skerry_models.parameters import State, initial_parameters
from skerry_models.task import Dataset, Task, load_task
from skerry_models.train_step import export_train_step


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


@pytest.fixture(scope="module")
def exported(task: Task) -> TrainStep:
    model, spec = export_train_step(task)
    return TrainStep(model, spec)


@pytest.fixture(scope="module")
def rows(task: Task) -> Dataset:
    return task.source("central")


def state_of(task: Task) -> State:
    return initial_parameters(task, seed=5)


def test_a_right_step_is_kept_as_it_is(task: Task, exported: TrainStep, rows: Dataset) -> None:
    kept, golden = train_step_for(task, state_of(task), rows, exported)
    assert kept is exported
    assert golden.outputs


def test_without_a_parent_the_step_is_exported(task: Task, exported: TrainStep, rows: Dataset) -> None:
    made, _ = train_step_for(task, state_of(task), rows, None)
    assert made.model == exported.model


def another_momentum(step: TrainStep) -> TrainStep:
    spec = type(step.spec).FromString(step.spec.SerializeToString())
    spec.momentum = 0.123
    return TrainStep(step.model, spec)


def another_parameter(step: TrainStep) -> TrainStep:
    spec = type(step.spec).FromString(step.spec.SerializeToString())
    spec.parameters[0].shape[0] += 1
    return TrainStep(step.model, spec)


def wrong_arithmetic(step: TrainStep) -> TrainStep:
    """The same interface, but another momentum inside the graph."""
    model = onnx.load_from_string(step.model)
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.dtype.kind == "f" and array.size == 1 and abs(float(array.reshape(-1)[0]) - step.spec.momentum) < 1e-6:
            initializer.CopyFrom(numpy_helper.from_array((array * 0).astype(array.dtype), initializer.name))
            return TrainStep(model.SerializeToString(), step.spec)
    raise AssertionError("the graph holds no momentum")


def garbage(step: TrainStep) -> TrainStep:
    return TrainStep(b"not a graph", step.spec)


@pytest.mark.parametrize("spoil", [another_momentum, another_parameter, wrong_arithmetic, garbage])
def test_a_wrong_step_is_exported_anew(task: Task, exported: TrainStep, rows: Dataset, spoil: object) -> None:
    assert callable(spoil)
    made, _ = train_step_for(task, state_of(task), rows, spoil(exported))
    assert made.model == exported.model
    assert made.spec == exported.spec
