"""What does not depend on the parameters is exported beside the first training, and the candidate finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_models import export_cache
from skerry_models.cache import FOLDER_VARIABLE
from skerry_models.task import load_task
from skerry_server.context import ServerContext
from skerry_server.errors import InvalidRequestError
from skerry_server.jobs.kinds import JobContext
from skerry_server.store.tables import Job
from skerry_server.training.export_job import run
from skerry_server.training.service import start_training


def job(context: ServerContext, payload: dict[str, object], folder: Path) -> JobContext:
    return JobContext(context=context, job_id="job-exports-digits", payload=payload, folder=folder)


def test_the_first_training_asks_for_it_once(context: ServerContext) -> None:
    for _ in range(2):
        with context.database.transaction() as session:
            start_training(session, task="digits", settings={}, actor="ada")
    with context.database.reading() as session:
        kinds = sorted(row.kind for row in session.query(Job))
    assert kinds == ["exports", "train", "train"]


def test_it_fills_the_cache(context: ServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    task = load_task("digits")
    assert run(job(context, {"task": "digits"}, tmp_path)) == {"task": "digits"}
    made = {kind: export_cache.read(task, kind) for kind in (export_cache.INFERENCE, export_cache.TRAIN_STEP)}
    assert all(made.values())
    run(job(context, {"task": "digits"}, tmp_path))
    assert {kind: export_cache.read(task, kind) for kind in made} == made


@pytest.mark.parametrize("payload", [{}, {"task": 3}, {"task": "unheard-of"}])
def test_a_wrong_payload_is_refused(context: ServerContext, tmp_path: Path, payload: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="task"):
        run(job(context, payload, tmp_path))
