from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skerry_models.errors import TaskLoadError, UnknownTaskError
from skerry_models.task import Dataset, Task, concatenate, load_task, task_names


def rows(count: int) -> Dataset:
    x = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    return Dataset(x, np.arange(count, dtype=np.int64))


def test_built_in_tasks_are_found_through_entry_points() -> None:
    assert {"digits", "har"} <= set(task_names())
    task = load_task("digits")
    assert isinstance(task, Task)
    assert load_task("digits") is task


def test_unknown_task_names_what_is_known() -> None:
    with pytest.raises(UnknownTaskError) as caught:
        load_task("weather")
    assert caught.value.name == "weather"
    assert "digits" in caught.value.known
    assert "weather" in str(caught.value)
    assert "digits" in str(caught.value)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path that looks like an installed distribution with one task."""
    info = tmp_path / "skerry_example-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skerry-example\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[skerry.tasks]\nexample-broken = skerry_example_broken:create\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
        ("def create():\n    raise RuntimeError('no licence')\n", "no licence"),
        ("def create():\n    return object()\n", "expected a task named 'example-broken', got object"),
        ("value = 1\n", "create"),
    ],
)
def test_broken_task_package_is_named(install: Path, source: str, reason: str) -> None:
    (install / "skerry_example_broken.py").write_text(source)
    sys.modules.pop("skerry_example_broken", None)
    assert "example-broken" in task_names()
    with pytest.raises(TaskLoadError) as caught:
        load_task("example-broken")
    assert caught.value.entry_point == "skerry_example_broken:create"
    assert reason in caught.value.reason


def test_listing_and_loading_tasks_does_not_import_torch() -> None:
    code = (
        "import sys; from skerry_models.task import load_task, task_names; import skerry_models.gates;"
        "load_task(task_names()[0]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.int64)),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64)),
        (np.zeros(2, np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 3), np.float32), np.zeros((2, 1), np.int64)),
    ],
)
def test_data_set_refuses_other_types_and_shapes(x: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(ValueError):
        Dataset(x, y)


def test_split_keeps_every_row_once_and_is_repeatable() -> None:
    first, second = rows(10).split(0.3, seed=4)
    assert (len(first), len(second)) == (3, 7)
    assert sorted([*first.y, *second.y]) == list(range(10))
    np.testing.assert_array_equal(first.x[:, 0], first.y * 2)
    np.testing.assert_array_equal(rows(10).split(0.3, seed=4)[0].y, first.y)
    assert rows(10).split(0.3, seed=5)[0].y.tolist() != first.y.tolist()
    assert len(rows(10).split(0.0, seed=0)[0]) == 0
    with pytest.raises(ValueError, match=r"1\.5"):
        rows(10).split(1.5, seed=0)


def test_take_and_concatenate() -> None:
    taken = rows(4).take([2, 0])
    np.testing.assert_array_equal(taken.x, [[4, 5], [0, 1]])
    np.testing.assert_array_equal(rows(3).take(np.array([True, False, True])).y, [0, 2])
    np.testing.assert_array_equal(concatenate([taken, rows(1)]).y, [2, 0, 0])
