"""The drift report, made by a real worker process with the real evidently."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from integration.monitoring.drift_world import DriftWorld
from integration.rollouts.control_plane import dump
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.incidents import service as incidents
from skerry_server.jobs import queue
from skerry_server.jobs.kinds import JobContext
from skerry_server.monitoring import report_job, reports
from skerry_server.monitoring.controller import DriftController
from skerry_server.store.tables import Incident, Job


@pytest.fixture
def world(tmp_path: Path) -> DriftWorld:
    return DriftWorld(tmp_path / "plane", devices=2)


def test_report_of_an_incident_is_an_html_document_that_says_what_its_rows_are(world: DriftWorld) -> None:
    for _ in range(2):
        world.round()
    for _ in range(2):
        world.round(shifts={"d0": 1.0})
    DriftController(world.context).step()
    with world.context.database.transaction() as session:
        job_id = reports.request_report(session, dump(world.context, Incident, "id")[0][0], "ada").id
    with world.context.database.transaction() as session:
        claimed = queue.claim_next(session, at_ms=now_ms())
        assert claimed is not None
        assert claimed.id == job_id
    (world.context.layout.config).write_text(world.context.config.model_dump_json())
    ended = subprocess.run(
        [sys.executable, "-m", "skerry_server.jobs.worker", str(world.root), job_id, "1"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    ((state, result),) = dump(world.context, Job, "state", "result")
    assert state == "done"
    assert (result["devices"], result["rows"]) == (1, {"baseline": 600, "current": 600})
    page = world.context.artifacts.get_bytes(result["html_sha256"]).decode()
    assert page.lstrip().startswith("<")
    assert "Rebuilt from histograms of 1 devices under release r1" in page
    assert "verdicts are not read from this report" in page
    for feature in ("energy", "tilt", "tempo"):
        assert feature in page
    assert "Drift" in page


def test_report_without_anything_to_compare_is_refused(world: DriftWorld, tmp_path: Path) -> None:
    world.report("d0", "r1")
    with world.context.database.transaction() as session:
        incident = incidents.report_evidence(
            session,
            kind="drift",
            task="digits",
            release_id="r1",
            device_id="d0",
            severity="warn",
            detail="",
            evidence={},
            actor="test",
        )
        assert incident is not None
        job = reports.request_report(session, incident.id, "ada")
        queue.claim_next(session, at_ms=now_ms())
    with pytest.raises(ConflictError, match="no device has both a baseline and newer windows"):
        report_job.run(JobContext(world.context, job.id, job.payload, tmp_path))


def test_reports_of_nothing_are_refused(world: DriftWorld) -> None:
    with world.context.database.transaction() as session:
        with pytest.raises(NotFoundError, match="no incident 'incident-x'"):
            reports.request_report(session, "incident-x", "ada")
        with pytest.raises(NotFoundError, match="no device 'd9'"):
            reports.request_device_report(session, "d9", "ada")
    assert dump(world.context, Job, "id") == []
