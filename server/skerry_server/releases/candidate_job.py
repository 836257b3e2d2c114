"""Job kind "candidate": from parameters to a verdict.

Payload ``{"candidate_id"}``, of a campaign perhaps ``"calibration"`` (:mod:`.candidate_calibration`), result
``{"candidate_id", "state", "bundle_sha256", "mlflow_model_version"}``. Five steps, each with one commit at its end and
nothing to do when that is there already: a job that is killed anywhere and run again goes on where it stood, and makes
one bundle, one model version and one verdict.

Figures: those of :class:`skerry_models.bundle.BundleReport`, and what the candidate came with. A figure that begins
with ``champion_`` is the champion's on the same rows; the accuracies on the holdout are measured here, others
(``champion_accuracy_drifted``) are the campaign's.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.identifiers import check_name
from skerry_contract.v1.release_pb2 import TrainStepSpec
from skerry_contract.wire import parse_message
from skerry_server.audit import ledger
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.rounds import personal_comparison
from skerry_server.jobs.kinds import JobContext
from skerry_server.releases import candidate_machine
from skerry_server.releases.candidate_calibration import build_calibrated
from skerry_server.releases.service import failed_gates, get_candidate, get_release
from skerry_server.store.tables import CampaignRound, Candidate, Job

if TYPE_CHECKING:
    from skerry_contract.calibration import TensorRanges
    from skerry_models.bundle import BundleReport
    from skerry_models.kept_step import TrainStep
    from skerry_models.quantise import QuantisedGraphs
    from skerry_models.task import Dataset
    from skerry_server.releases.deltas import Base

log = logging.getLogger(__name__)

#: Prefix of the figures of the champion.
CHAMPION_PREFIX = "champion_"
#: Files of the bundle that are read here.
_EDGES = "drift_edges.pb"
_INFER = "infer.onnx"
_STEP, _STEP_SPEC = "train_step.onnx", "train_step.pb"
#: Largest description of a training step (bytes).
_SPEC_BYTES = 1 << 20

Step = Callable[[JobContext, str], None]


def run(job: JobContext) -> dict[str, Any]:
    """Build, compare, register, decide; see the module."""
    return run_steps(job, STEPS)


def run_steps(job: JobContext, steps: Sequence[Step]) -> dict[str, Any]:
    """Take some of the steps in order; returns the job's result."""
    candidate_id = job.payload.get("candidate_id")
    if not isinstance(candidate_id, str):
        raise InvalidRequestError("payload.candidate_id", expected="an identifier", got=candidate_id)
    check_name(candidate_id, field="payload.candidate_id")
    for step in steps:
        job.progress(step=step.__name__)
        step(job, candidate_id)
    candidate = _read(job, candidate_id)
    return {
        "candidate_id": candidate_id,
        "state": candidate.state,
        "bundle_sha256": candidate.bundle_sha256,
        "mlflow_model_version": candidate.mlflow_model_version,
    }


def build(job: JobContext, candidate_id: str) -> None:
    """Export, quantise and measure; store the bundle; write its digest and figures."""
    candidate = _read(job, candidate_id)
    if candidate.bundle_sha256:
        return
    from skerry_models.bundle import build_bundle
    from skerry_models.parameters import decode_state
    from skerry_models.task import CENTRAL, HOLDOUT, load_task

    task = load_task(candidate.task)
    state = decode_state(task, job.context.artifacts.get_bytes(candidate.parameters_sha256))
    central, holdout = task.source(CENTRAL), task.source(HOLDOUT)
    folder = job.folder / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    parent = _parent_folder(job, candidate)
    earlier = _deployed(job, candidate)

    def build_with(ranges: TensorRanges | None, notes: Mapping[str, object]) -> BundleReport:
        lineage = _lineage(candidate, privacy=_privacy(job, candidate), central=central, holdout=holdout)
        return build_bundle(
            task,
            state,
            folder,
            reference=central,
            calibration=central,
            holdout=holdout,
            lineage={**lineage, **notes},
            parent_edges=_parent_edges(parent),
            parent_step=_parent_step(parent),
            parent_quantised=_quantised(job, earlier[0]) if earlier else None,
            ranges=ranges,
        )

    report = build_calibrated(job.payload, job.context.artifacts, build_with)
    sha256 = job.context.artifacts.put_bundle(folder)
    with job.context.database.transaction() as session:
        row = get_candidate(session, candidate_id)
        row.bundle_sha256 = sha256
        row.metrics = {**row.metrics, **report.metrics}
    shutil.rmtree(folder, ignore_errors=True)
    log.info("candidate %s: bundle %s", candidate_id, sha256)


def compare(job: JobContext, candidate_id: str) -> None:
    """Measure the champion on the same holdout, run the gates, write what they say."""
    candidate = _read(job, candidate_id)
    if candidate.gates:
        return
    from skerry_models.gates import evaluate_gates

    champion = _champion_metrics(job, candidate)
    own = {name: value for name, value in candidate.metrics.items() if not name.startswith(CHAMPION_PREFIX)}
    results = evaluate_gates(own, champion)
    with job.context.database.transaction() as session:
        row = get_candidate(session, candidate_id)
        row.gates = {"gates": [{name: _plain(value) for name, value in asdict(gate).items()} for gate in results]}
        row.metrics = {**row.metrics, **{CHAMPION_PREFIX + name: value for name, value in (champion or {}).items()}}


def subtract(job: JobContext, candidate_id: str) -> None:
    """Make the deltas of a candidate that passed its gates; write what they measure.

    Before the verdict: whoever publishes a passed candidate finds them there.
    """
    candidate = _read(job, candidate_id)
    if candidate.deltas or failed_gates(candidate):
        return
    from skerry_server.releases.deltas import make_deltas

    deltas = make_deltas(job.context.artifacts, candidate.bundle_sha256, _deployed(job, candidate))
    with job.context.database.transaction() as session:
        get_candidate(session, candidate_id).deltas = deltas
    for path, entries in deltas["files"].items():
        sizes = ", ".join(f"{entry['size']} of {entry['file_size']}" for entry in entries)
        log.info("candidate %s: delta of %s: %s bytes", candidate_id, path, sizes)


def register(job: JobContext, candidate_id: str) -> None:
    """Register the bundle in MLflow, also a rejected one; a passed one gets the alias "candidate"."""
    candidate = _read(job, candidate_id)
    if candidate.mlflow_model_version:
        return
    from skerry_server.registry.mlflow_registry import CANDIDATE_ALIAS, open_registry

    registry = open_registry(job.context.layout, job.context.config)
    run_id = candidate.mlflow_run_id or registry.ensure_run(
        candidate.task, key=candidate_id, name=f"judge {candidate_id}", tags={"skerry.origin": candidate.origin}
    )
    failed = failed_gates(candidate)
    tags = {
        "skerry.candidate": candidate_id,
        "skerry.origin": candidate.origin,
        "skerry.bundle_sha256": candidate.bundle_sha256,
        "skerry.gates": "failed: " + ", ".join(failed) if failed else "passed",
    }
    lineage = {
        "parent_release": candidate.parent_release,
        "campaign_id": candidate.campaign_id,
        "incident_id": candidate.incident_id,
        "parameters_sha256": candidate.parameters_sha256,
    }
    version = registry.register_bundle(
        candidate.task,
        job.context.artifacts.bundle_folder(candidate.bundle_sha256),
        key=candidate_id,
        run_id=run_id,
        tags=tags,
        params={name: value for name, value in lineage.items() if value},
        metrics={name: value for name, value in candidate.metrics.items() if math.isfinite(value)},
    )
    if not failed:
        registry.set_alias(candidate.task, CANDIDATE_ALIAS, version)
    if not candidate.mlflow_run_id:
        registry.finish_run(run_id)
    with job.context.database.transaction() as session:
        row = get_candidate(session, candidate_id)
        row.mlflow_run_id, row.mlflow_model_version = run_id, version


def decide(job: JobContext, candidate_id: str) -> None:
    """Make the verdict of the gates the candidate's state."""
    with job.context.database.transaction() as session:
        row = get_candidate(session, candidate_id)
        if row.state != candidate_machine.BUILT:
            return
        failed = failed_gates(row)
        _enter(session, row, "gates-failed" if failed else "gates-passed", failed=failed)


#: The steps of the job, in order.
STEPS: tuple[Step, ...] = (build, compare, subtract, register, decide)


def on_failure(session: Session, job: Job) -> None:
    """Reject the candidate of a job that failed for good, with the reason in place of a gate."""
    candidate = session.get(Candidate, str(job.payload.get("candidate_id")))
    if candidate is None or candidate.state != candidate_machine.BUILT:
        return
    gate = {"name": "build", "passed": False, "value": None, "limit": None, "detail": job.error}
    candidate.gates = {"gates": [*candidate.gates.get("gates", []), gate]}
    _enter(session, candidate, "gates-failed", failed=failed_gates(candidate))


def _enter(session: Session, candidate: Candidate, event: str, *, failed: list[str]) -> None:
    candidate.state = candidate_machine.advance(
        candidate_machine.CANDIDATE, candidate.state, event, subject=f"candidate {candidate.id}"
    )
    ledger.append(
        session,
        actor="system",
        action=f"candidate.{candidate.state}",
        subject=candidate.id,
        detail={"task": candidate.task, "bundle_sha256": candidate.bundle_sha256, "failed_gates": failed},
    )


def _read(job: JobContext, candidate_id: str) -> Candidate:
    with job.context.database.reading() as session:
        return get_candidate(session, candidate_id)


def _parent_folder(job: JobContext, candidate: Candidate) -> Path | None:
    """Bundle of the parent release, if there is one."""
    if not candidate.parent_release:
        return None
    with job.context.database.reading() as session:
        parent = get_release(session, candidate.parent_release)
    return job.context.artifacts.bundle_folder(parent.bundle_sha256)


def _deployed(job: JobContext, candidate: Candidate) -> list[Base]:
    """Releases that devices probably have when this candidate reaches them: the parent, then the champion."""
    from skerry_server.registry.champions import champion
    from skerry_server.releases.deltas import Base

    with job.context.database.reading() as session:
        parent = get_release(session, candidate.parent_release) if candidate.parent_release else None
        releases = [release for release in (parent, champion(session, candidate.task)) if release is not None]
    distinct = {release.id: release for release in releases}
    return [Base(release.id, release.bundle_sha256) for release in distinct.values()]


def _quantised(job: JobContext, release: Base) -> QuantisedGraphs:
    """INT8 forms of an earlier release, whose scales the candidate keeps if it can."""
    from skerry_models.quantise import INT8_QDQ, INT8_X86, QuantisedGraphs

    folder = job.context.artifacts.bundle_folder(release.bundle_sha256)
    return QuantisedGraphs((folder / INT8_QDQ).read_bytes(), (folder / INT8_X86).read_bytes())


def _parent_edges(folder: Path | None) -> bytes | None:
    """Drift edges of the parent release: a child keeps them, so that its windows compare with its parent's."""
    return (folder / _EDGES).read_bytes() if folder is not None else None


def _parent_step(folder: Path | None) -> TrainStep | None:
    """Training step of the parent release; the bundle proves it before it keeps it."""
    from skerry_models.kept_step import TrainStep

    if folder is None:
        return None
    spec = parse_message(TrainStepSpec, (folder / _STEP_SPEC).read_bytes(), limit=_SPEC_BYTES)
    return TrainStep((folder / _STEP).read_bytes(), spec)


def _champion_metrics(job: JobContext, candidate: Candidate) -> dict[str, float] | None:
    """The champion's figures: measured now on the holdout, plus those that the candidate came with."""
    from skerry_models.evaluation import evaluate_onnx
    from skerry_models.task import HOLDOUT, load_task
    from skerry_server.registry.champions import champion

    with job.context.database.reading() as session:
        release = champion(session, candidate.task)
    if release is None:
        return None
    model = job.context.artifacts.bundle_folder(release.bundle_sha256) / _INFER
    judged = evaluate_onnx(model, load_task(candidate.task).source(HOLDOUT))
    given = {
        name.removeprefix(CHAMPION_PREFIX): float(value)
        for name, value in candidate.metrics.items()
        if name.startswith(CHAMPION_PREFIX)
    }
    return {**given, "accuracy": judged.accuracy, "macro_f1": judged.macro_f1, "loss": judged.loss}


def _privacy(job: JobContext, candidate: Candidate) -> dict[str, object]:
    """What the candidate's campaign has spent, all its rounds included; empty without privacy or campaign."""
    query = sa.select(CampaignRound.privacy).where(CampaignRound.campaign_id == candidate.campaign_id)
    with job.context.database.reading() as session:
        return dict(session.scalar(query.order_by(CampaignRound.number.desc()).limit(1)) or {})


def _lineage(
    candidate: Candidate, *, privacy: dict[str, object], central: Dataset, holdout: Dataset
) -> dict[str, object]:
    """What the bundle comes from; nothing in it depends on when or where it was built."""
    return {
        **({"privacy": privacy} if privacy else {}),
        **personal_comparison.of_metrics(candidate.metrics),
        "candidate_id": candidate.id,
        "task": candidate.task,
        "origin": candidate.origin,
        "parameters_sha256": candidate.parameters_sha256,
        "parent_release": candidate.parent_release,
        "campaign_id": candidate.campaign_id,
        "incident_id": candidate.incident_id,
        "mlflow_run_id": candidate.mlflow_run_id,
        "data": {"central": _data_digest(central), "holdout": _data_digest(holdout)},
        "code": {"skerry": metadata.version("skerry")},
    }


def _data_digest(dataset: Dataset) -> dict[str, object]:
    digest = hashlib.sha256(dataset.x.tobytes())
    digest.update(dataset.y.tobytes())
    return {"rows": len(dataset), "sha256": digest.hexdigest()}


def _plain(value: object) -> object:
    """JSON has no NaN: a figure that was not measured is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
