"""MLflow's first store under kills at every step of its making, and beside files that are not ours."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_server.registry import first_store
from skerry_server.registry.first_store import is_finished, make_first, sqlite_file

#: What a making of the store does, a transaction each, as MLflow's migrations are.
STEPS = (
    "CREATE TABLE experiments (name TEXT)",
    "CREATE TABLE trace_metrics (value FLOAT)",
    "INSERT INTO experiments VALUES ('Default')",
)


class Killed(BaseException):
    """The process is gone."""


def making(*, steps: int = len(STEPS)) -> Callable[[str], None]:
    """Makes the store, or is killed after some steps."""

    def make(uri: str) -> None:
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
            for step in STEPS[:steps]:
                connection.execute(step)
                connection.commit()
        if steps < len(STEPS):
            raise Killed

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("steps", range(len(STEPS)))
def test_a_making_that_was_killed_leaves_nothing_and_the_next_one_ends_it(
    tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "mlflow.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(first_store, "_remove", lambda *paths: None)  # SIGKILL runs no clean-up
        with pytest.raises(Killed):
            make_first(path, making(steps=steps))
    assert not path.exists()

    assert make_first(path, making())
    assert is_finished(path)
    assert names(path.parent) == ["mlflow.sqlite", "mlflow.sqlite.lock"]


@pytest.mark.parametrize("steps", range(len(STEPS)))
def test_a_store_that_was_left_half_made_is_set_aside(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "mlflow.sqlite"
    with pytest.raises(Killed):
        making(steps=steps)(f"sqlite:///{path}")
    before = path.read_bytes()

    assert make_first(path, making())
    assert is_finished(path)
    assert (tmp_path / "mlflow.sqlite.unfinished-1").read_bytes() == before


def test_a_finished_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.sqlite"
    assert make_first(path, making())
    before = path.read_bytes()

    def refuse(uri: str) -> None:
        raise AssertionError(uri)

    assert not make_first(path, refuse)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["a database", "no database"])
def test_a_file_that_is_somebody_s_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mlflow.sqlite"
    if content == "a database":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
    else:
        path.write_bytes(b"bread\n" * 1000)
    before = path.read_bytes()

    assert not make_first(path, making())
    assert path.read_bytes() == before
    assert names(tmp_path) == ["mlflow.sqlite"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////var/lib/skerry/mlflow.sqlite", "/var/lib/skerry/mlflow.sqlite"),
        ("sqlite:///mlflow.sqlite?timeout=30", "mlflow.sqlite"),
        ("sqlite://", ""),
        ("sqlite:///:memory:", ""),
        ("postgresql://mlflow@db/mlflow", ""),
        ("http://mlflow:5000", ""),
    ],
)
def test_only_a_file_is_made_so(uri: str, path: str) -> None:
    assert sqlite_file(uri) == (Path(path) if path else None)
