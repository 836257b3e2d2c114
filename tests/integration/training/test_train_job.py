"""A training job in a real worker process that is killed half way, against the same training without a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_models.parameters import encode_state
from skerry_models.task import CENTRAL, HOLDOUT, load_task
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.jobs import queue
from skerry_server.jobs.runner import JobRunner
from skerry_server.registry.mlflow_registry import open_registry
from skerry_server.releases import service
from skerry_server.store.tables import AuditRow, Campaign, CampaignRound, Candidate, Job, Release
from skerry_server.training.service import start_training
from skerry_server.training.settings import parse_settings
from skerry_server.training.trainer import train

TASK = load_task("digits")


@pytest.mark.timeout(600)  # two starts of a process that imports torch and mlflow
def test_killed_half_way_it_ends_with_the_same_bits(
    context: ServerContext, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    with context.database.transaction() as session:
        job_id = start_training(
            session, task="digits", settings={"epochs": 20, "device": "cpu", "seed": 3}, actor="ada"
        ).id
    runner = JobRunner(context)

    def read() -> Job:
        with context.database.reading() as session:
            return queue.get_job(session, job_id)

    def reached(epoch: int) -> Callable[[], bool]:
        def condition() -> bool:
            runner.step()
            job = read()
            assert job.state in ("queued", "running"), job.error
            return job.pid > 0 and job.progress.get("epoch", 0) >= epoch

        return condition

    try:
        wait_until(reached(3), what="epoch 3", seconds=250)
        os.kill(read().pid, signal.SIGKILL)

        def lost() -> bool:
            runner.step()
            return read().attempts == 2

        wait_until(lost, what="the second attempt", seconds=60)

        def trained() -> bool:
            runner.step()
            assert read().state != "failed", read().error
            return read().state == "done"

        wait_until(trained, what="the end of the training", seconds=250)
    finally:
        runner.stop()
    job = read()
    assert job.attempts == 2
    assert 3 <= job.result["resumed_from"] <= 20
    settings = parse_settings(TASK.default_training, job.payload["settings"])
    whole = train(
        TASK,
        settings,
        dataset=TASK.source(CENTRAL),
        holdout=TASK.source(HOLDOUT),
        checkpoint=tmp_path / "whole.pt",
    )
    with context.database.reading() as session:
        candidate = service.get_candidate(session, job.result["candidate_id"])
        assert session.query(Candidate).count() == 1
    assert context.artifacts.get_bytes(candidate.parameters_sha256) == encode_state(whole.state)
    assert (candidate.origin, candidate.state, candidate.task) == ("central", "built", "digits")
    _check_run(context, candidate.mlflow_run_id, [record.loss for record in whole.history])


def _check_run(context: ServerContext, run_id: str, losses: list[float]) -> None:
    """MLflow has every epoch exactly once, the parameters, the plots and the summary."""
    from mlflow.tracking import MlflowClient

    open_registry(context.layout, context.config)
    client = MlflowClient(tracking_uri=context.layout.mlflow_uri(context.config))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "20"
    assert run.data.params["rows_training"] == "250"
    history = client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(losses, start=1))
    assert sorted(item.path for item in client.list_artifacts(run_id)) == ["model_summary.txt", "plots"]
    assert sorted(item.path for item in client.list_artifacts(run_id, "plots")) == [
        "plots/confusion_matrix.png",
        "plots/learning_curve.png",
    ]


@pytest.mark.parametrize(
    ("task", "settings", "field"),
    [
        ("weather", {}, "task"),
        ("digits", {"epochs": 0}, "settings.epochs"),
        ("digits", {"color": "red"}, "settings.color"),
        ("digits", {"warm_start": "release/digits-r9"}, ""),
        ("digits", {"warm_start": "campaign/none"}, ""),
        ("digits", {"warm_start": "campaign/fresh"}, ""),
        ("digits", {"warm_start": "release/har-r1"}, "settings.warm_start"),
    ],
)
def test_a_bad_request_starts_nothing(
    context: ServerContext, task: str, settings: dict[str, object], field: str
) -> None:
    with context.database.transaction() as session:
        session.add(_campaign("fresh"))
        session.add(_candidate("candidate-h", "har"))
        session.add(_release("har-r1", "har", "candidate-h"))
    with (
        pytest.raises((InvalidRequestError, NotFoundError, ConflictError)) as wrong,
        context.database.transaction() as session,
    ):
        start_training(session, task=task, settings=settings, actor="ada")
    assert getattr(wrong.value, "field", "") == field
    if task == "weather":
        assert "digits" in str(wrong.value)
    with context.database.reading() as session:
        assert (session.query(Job).count(), session.query(AuditRow).count()) == (0, 0)


def test_a_warm_start_is_pinned_by_digest_when_it_is_asked_for(context: ServerContext) -> None:
    """A campaign that goes on after the request does not change what the job starts from."""
    with context.database.transaction() as session:
        session.add(_candidate("candidate-d", "digits"))
        session.add(_release("digits-r1", "digits", "candidate-d"))
        session.add(_campaign("fleet"))
        session.flush()
        for number in (1, 2):
            session.add(_round("fleet", number))
        session.flush()
        release = start_training(session, task="digits", settings={"warm_start": "release/digits-r1"}, actor="ada")
        campaign = start_training(session, task="digits", settings={"warm_start": "campaign/fleet"}, actor="ada")
        session.add(_round("fleet", 3))
    assert (release.payload["initial_sha256"], release.payload["parent_release"]) == ("d" * 64, "digits-r1")
    assert (campaign.payload["initial_sha256"], campaign.payload["parent_release"]) == ("2" * 64, "digits-r1")


def _candidate(identifier: str, task: str) -> Candidate:
    return Candidate(
        id=identifier,
        task=task,
        origin="central",
        state="released",
        parameters_sha256="d" * 64,
        metrics={},
        gates={},
        created_ms=0,
    )


def _release(identifier: str, task: str, candidate_id: str) -> Release:
    return Release(
        id=identifier,
        task=task,
        sequence=1,
        candidate_id=candidate_id,
        origin="central",
        bundle_sha256="0" * 64,
        envelope=b"",
        metrics={},
        created_ms=0,
    )


def _campaign(identifier: str) -> Campaign:
    return Campaign(
        id=identifier,
        task="digits",
        base_release="digits-r1",
        cohort_id="all",
        strategy="fedavg",
        settings={},
        state="running",
        created_by="ada",
        created_ms=0,
        updated_ms=0,
    )


def _round(campaign_id: str, number: int) -> CampaignRound:
    return CampaignRound(
        campaign_id=campaign_id,
        number=number,
        invited=1,
        accepted=1,
        accuracy=0.5,
        loss=1.0,
        seconds=1.0,
        parameters_sha256=str(number) * 64,
        committed_ms=0,
    )
