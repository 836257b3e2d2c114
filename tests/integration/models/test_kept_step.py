"""A training step is kept over releases while it is right, and exported anew when it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from skerry_models import export_cache
from skerry_models.cache import FOLDER_VARIABLE
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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return export_cache.export_folder()


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


def test_an_export_is_there_the_next_time(task: Task, exported: TrainStep, rows: Dataset, cache: Path) -> None:
    train_step_for(task, state_of(task), rows, None)
    assert [path.name for path in cache.iterdir()] == [export_cache.entry_name(task, export_cache.TRAIN_STEP)]
    found = export_cache.read(task, export_cache.TRAIN_STEP)
    assert found is not None
    assert found[0] == exported.model
    again, _ = train_step_for(task, state_of(task), rows, None)
    assert again.model == exported.model


@pytest.mark.parametrize("spoil", [another_momentum, another_parameter, wrong_arithmetic, garbage])
def test_a_wrong_entry_is_exported_anew_and_replaced(
    task: Task, exported: TrainStep, rows: Dataset, spoil: Callable[[TrainStep], TrainStep]
) -> None:
    wrong = spoil(exported)
    export_cache.write(task, export_cache.TRAIN_STEP, wrong.model, wrong.spec.SerializeToString())
    made, _ = train_step_for(task, state_of(task), rows, None)
    assert made.model == exported.model
    found = export_cache.read(task, export_cache.TRAIN_STEP)
    assert found is not None
    assert found[0] == exported.model


@pytest.mark.parametrize("size", [0, 7, 39, 40, 1000])
def test_a_damaged_entry_is_no_entry(task: Task, cache: Path, size: int) -> None:
    export_cache.write(task, export_cache.TRAIN_STEP, b"model" * 300, b"spec")
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes()[:size])
    assert export_cache.read(task, export_cache.TRAIN_STEP) is None


def test_a_cache_that_cannot_be_written_is_an_empty_one(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file"))
    export_cache.write(task, export_cache.TRAIN_STEP, b"model", b"spec")
    assert export_cache.read(task, export_cache.TRAIN_STEP) is None
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_oldest_entries_go(task: Task, cache: Path) -> None:
    cache.mkdir(parents=True)
    for number in range(export_cache.ENTRIES + 3):
        path = cache / f"{number:02d}"
        path.write_bytes(b"x")
        os.utime(path, (number, number))
    export_cache.write(task, export_cache.TRAIN_STEP, b"model", b"spec")
    left = sorted(path.name for path in cache.iterdir())
    assert len(left) == export_cache.ENTRIES
    assert export_cache.entry_name(task, export_cache.TRAIN_STEP) in left
    assert "03" not in left
