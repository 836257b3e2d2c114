"""The export behind the inference graphs is kept while it is right, and made anew when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sklearn.datasets import load_digits

from skerry_models import export_cache
from skerry_models.cache import FOLDER_VARIABLE
from skerry_models.export import InferenceGraphs, export_inference
from skerry_models.parameters import initial_parameters
from skerry_models.task import Task, load_task


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return export_cache.export_folder()


def export(task: Task, seed: int) -> InferenceGraphs:
    return export_inference(task, initial_parameters(task, seed=seed), task.source("central").x[:8])


@pytest.fixture(scope="module")
def right(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[InferenceGraphs, bytes]:
    """The graphs of seed 1, and the entry that their export left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("right")))
        return export(task, seed=1), kept(task)


def kept(task: Task) -> bytes:
    found = export_cache.read(task, export_cache.INFERENCE)
    assert found is not None
    return found[0]


def test_a_kept_export_gives_the_bytes_that_a_fresh_one_gives(
    task: Task, cache: Path, right: tuple[InferenceGraphs, bytes]
) -> None:
    first, entry_bytes = right
    export_cache.write(task, export_cache.INFERENCE, entry_bytes)
    assert [path.name for path in cache.iterdir()] == [export_cache.entry_name(task, export_cache.INFERENCE)]
    other = export(task, seed=2)  # from the entry that seed 1 left
    (entry,) = cache.iterdir()
    entry.unlink()
    assert export(task, seed=2) == other
    assert other.infer != first.infer
    assert other.evaluate == first.evaluate  # it takes the parameters as inputs


def with_another_constant(model: onnx.ModelProto) -> bytes:
    """The same interface; a constant that is no parameter is doubled."""
    names = set(initial_parameters(load_task("digits"), seed=0))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name not in names and array.dtype.kind == "f" and np.any(array):
            tensor.CopyFrom(numpy_helper.from_array(array * 2, tensor.name))
    return bytes(model.SerializeToString())


def with_another_shape(model: onnx.ModelProto) -> bytes:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bias"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(3, dtype=np.float32), tensor.name))
    return bytes(model.SerializeToString())


def without_its_nodes(model: onnx.ModelProto) -> bytes:
    del model.graph.node[:]
    return bytes(model.SerializeToString())


def garbage(_model: onnx.ModelProto) -> bytes:
    return b"not a graph"


@pytest.mark.parametrize("spoil", [with_another_constant, with_another_shape, without_its_nodes, garbage])
def test_a_wrong_entry_is_exported_anew_and_replaced(
    task: Task, right: tuple[InferenceGraphs, bytes], spoil: Callable[[onnx.ModelProto], bytes]
) -> None:
    graphs, good = right
    export_cache.write(task, export_cache.INFERENCE, spoil(onnx.load_from_string(good)))
    assert kept(task) != good
    assert export(task, seed=1) == graphs
    assert kept(task) == good


def test_the_digits_are_those_of_scikit_learn(task: Task) -> None:
    """The task reads the package's file itself."""
    pixels, labels = load_digits(return_X_y=True)
    known = {row.tobytes(): int(label) for row, label in zip(pixels.astype(np.float32), labels, strict=True)}
    sources = ["central", "holdout", "unseen", *(f"client/{name}" for name in task.client_names())]
    parts = [task.source(name) for name in sources]
    assert sum(len(part) for part in parts) == len(labels)
    for part in parts:
        assert [known[row.tobytes()] for row in part.x.reshape(len(part), -1)] == part.y.tolist()
