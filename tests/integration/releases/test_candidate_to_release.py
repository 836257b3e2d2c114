"""From parameters to a signed release with the real digits task: candidate job, gates, MLflow, publishing, champions.

One candidate is built once, by a job that is killed at four places; the tests look at what it left.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from skerry_contract.delta import apply
from skerry_contract.manifest import parse_manifest
from skerry_contract.signing import RELEASE, Ed25519Verifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_models.fitting import fit
from skerry_models.parameters import decode_state, encode_state, initial_parameters
from skerry_models.task import CENTRAL, load_task
from skerry_server.audit import ledger
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.jobs import queue
from skerry_server.jobs.kinds import JobContext
from skerry_server.jobs.runner import WORKER_COMMAND, JobRunner
from skerry_server.registry import alias_job, champions
from skerry_server.registry.mlflow_registry import CANDIDATE_ALIAS, CHAMPION_ALIAS, MlflowRegistry, open_registry
from skerry_server.releases import candidate_job, service
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import AuditRow, Candidate, Job, Release
from unit.jobs.support import make_context

# Exporting a network takes some 20 s of one core, and MLflow's first start another 6.
pytestmark = pytest.mark.timeout(600)

DYING = (sys.executable, str(Path(__file__).with_name("worker_that_dies.py")))
TASK = "digits"
ID = "candidate-one"


@dataclass(frozen=True)
class Judged:
    """A control plane with one candidate that has passed its gates."""

    context: ServerContext
    job: Job
    registry: MlflowRegistry


def read(context: ServerContext, candidate_id: str) -> Candidate:
    with context.database.reading() as session:
        return service.get_candidate(session, candidate_id)


def run_job(context: ServerContext, job_id: str, command: tuple[str, ...], wait: Callable[..., None]) -> Job:
    """Let a runner with real worker processes bring a job to its end."""
    runner = JobRunner(context, command=command)

    def ended() -> bool:
        runner.step()
        with context.database.reading() as session:
            return queue.get_job(session, job_id).state in ("done", "failed")

    try:
        wait(ended, what=f"the end of {job_id}", seconds=550)
    finally:
        runner.stop()
    with context.database.reading() as session:
        return queue.get_job(session, job_id)


@pytest.fixture(scope="module")
def wait_long() -> Callable[..., None]:
    import time

    def wait(condition: Callable[[], object], *, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, wait_long: Callable[..., None]) -> Iterator[Judged]:
    context = make_context(tmp_path_factory.mktemp("control-plane"))
    task = load_task(TASK)
    parameters = encode_state(fit(task, task.source(CENTRAL)))
    with context.database.transaction() as session:
        first = service.create_candidate(
            session, context, task=TASK, origin="central", parameters=parameters, candidate_id=ID, actor="ada"
        )
        again = service.create_candidate(
            session, context, task=TASK, origin="central", parameters=parameters, candidate_id=ID, actor="ada"
        )
        assert again is first
    job = run_job(context, service.candidate_job_id(ID), DYING, wait_long)
    yield Judged(context, job, open_registry(context.layout, context.config))
    context.close()


def test_a_job_that_was_killed_at_four_places_makes_one_of_everything(judged: Judged) -> None:
    assert (judged.job.state, judged.job.attempts) == ("done", 5), judged.job.error
    candidate = read(judged.context, ID)
    assert candidate.state in ("passed", "released")
    assert judged.job.result == {
        "candidate_id": ID,
        "state": "passed",
        "bundle_sha256": candidate.bundle_sha256,
        "mlflow_model_version": "1",
    }
    assert [gate["name"] for gate in candidate.gates["gates"]] == [
        "minimum-accuracy",
        "int8-accuracy",
        "parity",
        "latency",
        "size",
    ]
    assert candidate.metrics["accuracy"] > 0.85
    assert [path.name for path in (judged.context.layout.artifacts / "bundles").iterdir() if path.is_dir()] == [
        candidate.bundle_sha256
    ]
    with judged.context.database.reading() as session:
        actions = [row.action for row in session.query(AuditRow).where(AuditRow.subject == ID)]
    assert [action for action in actions if action != "release.publish"] == ["candidate.create", "candidate.passed"]


def test_mlflow_knows_the_bundle_by_version_alias_and_content(judged: Judged, tmp_path: Path) -> None:
    """Read with MLflow's own client, as an engineer would."""
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = judged.context.layout.mlflow_uri(judged.context.config)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    versions = client.search_model_versions("name = 'skerry-digits'")
    candidate = read(judged.context, ID)
    assert [version.version for version in versions] == [1]
    assert versions[0].tags["skerry.bundle_sha256"] == candidate.bundle_sha256
    assert versions[0].tags["skerry.gates"] == "passed"
    assert versions[0].run_id == candidate.mlflow_run_id
    assert client.get_model_version_by_alias("skerry-digits", CANDIDATE_ALIAS).version == 1
    experiment = client.get_experiment_by_name("skerry/digits")
    models = client.search_logged_models([experiment.experiment_id])
    assert [str(model.status) for model in models] == ["READY"]
    assert {metric.key: metric.value for metric in models[0].metrics}["accuracy"] == candidate.metrics["accuracy"]
    mlflow.set_tracking_uri(uri)
    folder = Path(
        mlflow.artifacts.download_artifacts(f"models:/skerry-digits@{CANDIDATE_ALIAS}", dst_path=str(tmp_path))
    )
    bundle = judged.context.artifacts.bundle_folder(candidate.bundle_sha256)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


def test_the_bundle_says_where_it_comes_from(judged: Judged) -> None:
    candidate = read(judged.context, ID)
    lineage = json.loads((judged.context.artifacts.bundle_folder(candidate.bundle_sha256) / "lineage.json").read_text())
    assert lineage["parameters_sha256"] == candidate.parameters_sha256
    assert lineage["candidate_id"] == ID
    assert lineage["data"]["holdout"]["rows"] == 250
    assert lineage["code"]["skerry"]


def test_publishing_signs_once_and_devices_can_check_it(judged: Judged) -> None:
    context = judged.context
    with context.database.transaction() as session:
        release = service.publish(session, context, ID, "ada")
        entries = session.query(AuditRow).count()
        again = service.publish(session, context, ID, "bob")
        assert (again.id, session.query(AuditRow).count()) == (release.id, entries)
        assert ledger.verify(session) is None
    assert read(context, ID).state == "released"
    assert release.approved_version == 1
    key = load_or_create_key(context.layout).public_key
    payload = Ed25519Verifier([key]).verify(RELEASE, SignedEnvelope.FromString(release.envelope))
    manifest = parse_manifest(payload)
    assert manifest == service.release_manifest(release)
    assert (manifest.release_id, manifest.sequence, manifest.task) == (release.id, release.sequence, TASK)
    assert manifest.bundle_sha256.hex() == release.bundle_sha256 == read(context, ID).bundle_sha256
    assert manifest.edges_sha256.hex() == release.edges_sha256
    by_path = {entry.path: entry for entry in manifest.files}
    assert by_path["train_step.onnx"].sha256.hex() == release.train_step_sha256
    for entry in manifest.files:
        chunks = [context.artifacts.open_chunk(entry.sha256.hex(), i) for i in range(len(entry.chunk_sha256))]
        assert sum(map(len, chunks)) == entry.size
    with context.database.reading() as session:
        parameters = service.release_parameters(session, context, release.id)
    assert parameters == (context.artifacts.bundle_folder(release.bundle_sha256) / "parameters.pb").read_bytes()


def clone(context: ServerContext, candidate_id: str, **changes: object) -> None:
    """A candidate with the same bundle."""
    with context.database.transaction() as session:
        source = service.get_candidate(session, ID)
        columns = {column.key: getattr(source, column.key) for column in Candidate.__table__.columns}
        session.add(Candidate(**{**columns, "id": candidate_id, "state": "passed", **changes}))


def test_numbers_are_unique_when_many_publish_at_once(judged: Judged) -> None:
    context = judged.context
    names = [f"candidate-race-{index}" for index in range(6)]
    for name in names:
        clone(context, name)
    published: list[Release] = []

    def publish(name: str) -> None:
        with context.database.transaction() as session:
            published.append(service.publish(session, context, name, "ada"))

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with context.database.reading() as session:
        others = session.query(Release).where(Release.candidate_id.notin_(names)).count()
        releases = service.list_releases(session, task=TASK)
    assert sorted(release.sequence for release in published) == list(range(others + 1, others + 7))
    assert {release.candidate_id for release in published} == set(names)
    assert len({release.id for release in releases}) == len(releases) == others + 6


def test_what_has_not_passed_cannot_be_published(judged: Judged) -> None:
    context = judged.context
    gates = {
        "gates": [
            {"name": "size", "passed": True, "value": 1, "limit": 2, "detail": ""},
            {"name": "champion", "passed": False, "value": 0.5, "limit": 0.9, "detail": ""},
            {"name": "latency", "passed": False, "value": None, "limit": 1, "detail": ""},
        ]
    }
    clone(context, "candidate-bad", state="rejected", gates=gates)
    clone(context, "candidate-new", state="built", gates={})
    for name, message in (
        ("candidate-bad", "failed gates: champion, latency"),
        ("candidate-new", "is built: 'publish' is not possible"),
    ):
        with context.database.transaction() as session:
            before = (session.query(Release).count(), session.query(AuditRow).count())
            with pytest.raises(ConflictError, match=message):
                service.publish(session, context, name, "ada")
            assert (session.query(Release).count(), session.query(AuditRow).count()) == before
    with context.database.reading() as session:
        assert "candidate-bad" in [row.id for row in service.list_candidates(session, task=TASK, state="rejected")]
        assert service.list_candidates(session, task="har") == []
    with context.database.transaction() as session, pytest.raises(NotFoundError):
        service.publish(session, context, "candidate-none", "ada")


def test_the_champion_has_a_history_and_mlflow_follows_it(judged: Judged) -> None:
    context = judged.context
    clone(context, "candidate-a", task=TASK)
    clone(context, "candidate-b", task=TASK, mlflow_model_version="1")
    with context.database.transaction() as session:
        a = service.publish(session, context, "candidate-a", "ada").id
        b = service.publish(session, context, "candidate-b", "ada").id
        before = len(champions.history(session, TASK))
        previous = champions.champion(session, TASK)
        first = champions.promote(session, task=TASK, release_id=a, reason="rollout r1 finished")
        assert champions.promote(session, task=TASK, release_id=a, reason="again") is first
        champions.promote(session, task=TASK, release_id=b, reason="rollout r2 finished", actor="eve")
    with context.database.reading() as session:
        newest = champions.champion(session, TASK)
        assert newest is not None
        assert newest.id == b
        history = champions.history(session, TASK)[before:]
        assert [(entry.release_id, entry.previous_release, entry.reason) for entry in history] == [
            (a, previous.id if previous else "", "rollout r1 finished"),
            (b, a, "rollout r2 finished"),
        ]
        jobs = [queue.get_job(session, f"job-champion-{entry.id}") for entry in history]
    assert [job.payload for job in jobs] == [{"task": TASK}] * 2
    for job in jobs:
        made = JobContext(context, job.id, job.payload, context.layout.jobs)
        assert alias_job.run(made) == {"version": "1"}
        with context.database.transaction() as session:
            queue.get_job(session, job.id).state = "done"
    assert judged.registry.version_by_alias(TASK, CHAMPION_ALIAS) == "1"
    with context.database.transaction() as session:
        with pytest.raises(ConflictError, match="champion"):
            service.withdraw(session, b, actor="ada", reason="bad")
        assert service.withdraw(session, a, actor="ada", reason="old").state == "withdrawn"
        with pytest.raises(ConflictError, match="withdrawn"):
            champions.promote(session, task=TASK, release_id=a, reason="back")
        with pytest.raises(ConflictError, match="is withdrawn"):
            service.withdraw(session, a, actor="ada", reason="again")
        with pytest.raises(InvalidRequestError, match="task"):
            champions.promote(session, task="har", release_id=b, reason="x")


def test_a_worse_candidate_is_rejected_against_the_champion_and_registered_all_the_same(judged: Judged) -> None:
    """The bundle is there already; its figures are made worse, and the other steps run in this process."""
    context = judged.context
    with context.database.transaction() as session:
        release = service.publish(session, context, ID, "ada")
        champions.promote(session, task=TASK, release_id=release.id, reason="for this test")
    good = read(context, ID).metrics
    bad = {**good, "accuracy": 0.4, "accuracy_drifted": 0.2, "champion_accuracy_drifted": 0.4}
    clone(context, "candidate-worse", state="built", gates={}, metrics=bad, mlflow_model_version="", mlflow_run_id="")
    with context.database.transaction() as session:
        queue.enqueue(session, "candidate", {"candidate_id": "candidate-worse"}, job_id="job-worse")
        job = queue.get_job(session, "job-worse")
        job.state, job.attempts = "running", 1
    result = candidate_job.run(
        JobContext(context, "job-worse", {"candidate_id": "candidate-worse"}, context.layout.jobs)
    )
    row = read(context, "candidate-worse")
    assert result["state"] == row.state == "rejected"
    assert service.failed_gates(row) == ["minimum-accuracy", "champion", "drifted-cohort"]
    assert row.metrics["champion_accuracy"] == pytest.approx(good["accuracy"])
    assert row.metrics["champion_accuracy_drifted"] == 0.4
    assert judged.registry.version_by_key(TASK, "candidate-worse") == row.mlflow_model_version == "2"
    assert judged.registry.version_by_alias(TASK, CANDIDATE_ALIAS) == "1"


@pytest.mark.parametrize("harm", ["other network", "unknown task"])
def test_a_candidate_that_cannot_be_built_is_rejected_with_the_reason(
    judged: Judged, wait_long: Callable[..., None], harm: str
) -> None:
    context = judged.context
    state = initial_parameters(load_task(TASK), 0)
    name, first = next(iter(state.items()))
    parameters = encode_state({**state, name: first[..., :1]} if harm == "other network" else state)
    with context.database.transaction() as session:
        made = service.create_candidate(
            session,
            context,
            task=TASK if harm == "other network" else "weather",
            origin="federated",
            parameters=parameters,
        )
    job = run_job(context, service.candidate_job_id(made.id), WORKER_COMMAND, wait_long)
    assert (job.state, job.attempts) == ("failed", 1)
    row = read(context, made.id)
    assert (row.state, row.bundle_sha256, service.failed_gates(row)) == ("rejected", "", ["build"])
    assert row.gates["gates"][0]["detail"] == job.error
    assert (name if harm == "other network" else "weather") in job.error
    with context.database.transaction() as session, pytest.raises(ConflictError, match="failed gates: build"):
        service.publish(session, context, made.id, "ada")


def test_malformed_candidates_are_refused_and_leave_nothing(judged: Judged) -> None:
    context = judged.context
    good = encode_state(initial_parameters(load_task(TASK), 0))
    with context.database.reading() as session:
        before = (session.query(Candidate).count(), session.query(Job).count(), session.query(AuditRow).count())
    for field, changes in (
        ("task", {"task": "Digits/../x"}),
        ("origin", {"origin": "stolen"}),
        ("parameters", {"parameters": b"\xff\xff"}),
        ("parameters", {"parameters": b""}),
    ):
        arguments = {"task": TASK, "origin": "central", "parameters": good, **changes}
        with pytest.raises(InvalidRequestError) as wrong, context.database.transaction() as session:
            service.create_candidate(session, context, **arguments)  # type: ignore[arg-type]  # wrong on purpose
        assert wrong.value.field.startswith(field)
    with pytest.raises(NotFoundError), context.database.transaction() as session:
        service.create_candidate(
            session, context, task=TASK, origin="central", parameters=good, parent_release="digits-r99"
        )
    with pytest.raises(ConflictError, match="other parameters"), context.database.transaction() as session:
        service.create_candidate(session, context, task=TASK, origin="central", parameters=good, candidate_id=ID)
    with context.database.reading() as session:
        after = (session.query(Candidate).count(), session.query(Job).count(), session.query(AuditRow).count())
    assert after == before


def test_a_later_candidate_keeps_the_scales_of_its_parent_and_travels_as_deltas(judged: Judged) -> None:
    """The job runs in this process, on parameters that moved a little, as after a federated round."""
    context, task = judged.context, load_task(TASK)
    with context.database.transaction() as session:
        parent = service.publish(session, context, ID, "ada")
        champions.promote(session, task=TASK, release_id=parent.id, reason="for this test")
    generator = np.random.default_rng(5)
    moved = {
        name: (np.asarray(array, dtype=np.float32) + generator.normal(0, 0.002, array.shape)).astype(np.float32)
        for name, array in decode_state(task, context.artifacts.get_bytes(read(context, ID).parameters_sha256)).items()
    }
    name, job_id = "candidate-child", service.candidate_job_id("candidate-child")
    with context.database.transaction() as session:
        service.create_candidate(
            session,
            context,
            task=TASK,
            origin="federated",
            parameters=encode_state(moved),
            candidate_id=name,
            parent_release=parent.id,
        )
        job = queue.get_job(session, job_id)
        job.state, job.attempts = "running", 1
    folder = context.layout.jobs / job_id
    folder.mkdir(parents=True)
    candidate_job.run(JobContext(context, job_id, {"candidate_id": name}, folder))
    candidate = read(context, name)
    assert (candidate.state, candidate.metrics["int8_scales_kept"]) == ("passed", 1.0)
    bundle = context.artifacts.bundle_folder(candidate.bundle_sha256)
    assert json.loads((bundle / "lineage.json").read_text())["int8_scales"]["kept"] is True
    assert candidate.deltas["bases"] == [parent.id]
    with context.database.transaction() as session:
        manifest = service.release_manifest(service.publish(session, context, name, "ada"))
    parse_manifest(manifest.SerializeToString())
    shares = {}
    for entry in manifest.files:
        for found in entry.deltas:
            content, base = (context.artifacts.get_bytes(key.hex()) for key in (found.sha256, found.base_sha256))
            assert apply(content, base) == context.artifacts.get_bytes(entry.sha256.hex())
            shares[entry.path] = found.size / entry.size
    assert {"infer.onnx", "infer.int8-qdq.onnx", "infer.int8-x86.onnx", "parameters.pb"} <= set(shares)
    assert max(shares["infer.int8-qdq.onnx"], shares["infer.int8-x86.onnx"]) < 0.25
