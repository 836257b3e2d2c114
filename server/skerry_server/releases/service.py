"""Candidates and releases: what the API, the campaigns and the incidents call.

Every function works inside the caller's transaction: either everything it says happened, or nothing did. Blobs are
stored before the rows that name them; a blob without a row harms nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from skerry_contract import signing
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name, new_id
from skerry_contract.manifest import check_manifest
from skerry_contract.tensors import decode_bundle
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.jobs import queue
from skerry_server.releases import candidate_machine
from skerry_server.releases.candidate_calibration import PAYLOAD as CALIBRATION
from skerry_server.store.tables import Candidate, ChampionEntry, Release, UpdateEventRow

#: Where parameters come from.
ORIGINS = ("central", "federated")
#: How often publishing tries the next number when another process took it.
_SEQUENCE_ATTEMPTS = 8


def create_candidate(
    session: Session,
    context: ServerContext,
    *,
    task: str,
    origin: str,
    parameters: bytes,
    candidate_id: str = "",
    parent_release: str = "",
    campaign_id: str = "",
    incident_id: str = "",
    mlflow_run_id: str = "",
    metrics: Mapping[str, float] | None = None,
    calibration: Mapping[str, Any] | None = None,
    actor: str = "system",
) -> Candidate:
    """Record parameters as a candidate and enqueue the job that builds, evaluates and judges it.

    Args:
        session: Open transaction.
        context: Its artifact store takes the parameters.
        task: Name of the task.
        origin: One of :data:`ORIGINS`.
        parameters: ``skerry_contract.tensors.encode_bundle`` of every parameter and buffer, in network order.
        candidate_id: Chosen by a caller that may be killed and call again: the same identifier is the same candidate.
        parent_release: Release whose parameters were the start; its drift edges are the parent's.
        campaign_id: Campaign that made it.
        incident_id: Incident that asked for it.
        mlflow_run_id: MLflow run that made it; the model version is linked to it.
        metrics: Figures known already, for the gates: flat name to number. A drifted cohort's gate wants
            ``accuracy_drifted`` and, of the champion on the same rows, ``champion_accuracy_drifted``.
        calibration: Outcome of a campaign's federated calibration, for the candidate's job
            (:mod:`skerry_server.releases.candidate_calibration`); None or empty: central.
        actor: Who asked, for the audit ledger.

    Returns:
        The candidate in state "built".

    Raises:
        InvalidRequestError: A malformed field.
        NotFoundError: The parent release does not exist.
        ConflictError: The identifier is taken by other parameters.
    """
    _check_candidate(task=task, origin=origin, parameters=parameters)
    if parent_release:
        get_release(session, parent_release)
    sha256 = context.artifacts.put_bytes(parameters)
    candidate_id = candidate_id or new_id("candidate")
    existing = session.get(Candidate, candidate_id)
    if existing is not None:
        if existing.parameters_sha256 != sha256 or existing.task != task:
            raise ConflictError(f"candidate {candidate_id} exists with other parameters")
        return existing
    candidate = Candidate(
        id=candidate_id,
        task=task,
        origin=origin,
        state=candidate_machine.BUILT,
        parameters_sha256=sha256,
        parent_release=parent_release,
        campaign_id=campaign_id,
        incident_id=incident_id,
        mlflow_run_id=mlflow_run_id,
        metrics=dict(metrics or {}),
        gates={},
        created_ms=now_ms(),
    )
    session.add(candidate)
    payload = {"candidate_id": candidate_id, **({CALIBRATION: dict(calibration)} if calibration else {})}
    queue.enqueue(session, "candidate", payload, job_id=candidate_job_id(candidate_id))
    ledger.append(
        session,
        actor=actor,
        action="candidate.create",
        subject=candidate_id,
        detail={"task": task, "origin": origin, "parameters_sha256": sha256, "campaign_id": campaign_id},
    )
    session.flush()
    return candidate


def candidate_job_id(candidate_id: str) -> str:
    """Identifier of the job that judges a candidate."""
    return f"job-{candidate_id}"


def publish(session: Session, context: ServerContext, candidate_id: str, actor: str) -> Release:
    """Sign a candidate that passed its gates and make it a release with the task's next number.

    Publishing a candidate again gives the release that it became, and changes nothing.

    Args:
        session: Open transaction.
        context: Its signer signs; its artifact store holds the bundle.
        candidate_id: Which one.
        actor: Who decided, for the audit ledger.

    Raises:
        NotFoundError: There is no such candidate.
        ConflictError: Its gates have not run, or some failed: the error names them.
    """
    # Imported before the first statement, which takes the database's write lock: torch comes with it.
    import skerry_models.bundle  # noqa: F401

    candidate = session.get(Candidate, candidate_id, with_for_update=True)
    if candidate is None:
        raise NotFoundError("candidate", candidate_id)
    published = session.scalar(sa.select(Release).where(Release.candidate_id == candidate_id))
    if published is not None:
        return published
    failed = failed_gates(candidate)
    if candidate.state == candidate_machine.REJECTED:
        raise ConflictError(f"candidate {candidate_id} was rejected: failed gates: {', '.join(failed) or 'unknown'}")
    following = candidate_machine.advance(
        candidate_machine.CANDIDATE, candidate.state, "publish", subject=f"candidate {candidate_id}"
    )
    release = _add_release(session, context, candidate)
    candidate.state = following
    ledger.append(
        session,
        actor=actor,
        action="release.publish",
        subject=release.id,
        detail={
            "candidate_id": candidate_id,
            "task": release.task,
            "sequence": release.sequence,
            "approved_version": release.approved_version,
            "bundle_sha256": release.bundle_sha256,
        },
    )
    session.flush()
    return release


def failed_gates(candidate: Candidate) -> list[str]:
    """Names of the gates that a candidate failed."""
    return [gate["name"] for gate in candidate.gates.get("gates", []) if not gate["passed"]]


def withdraw(session: Session, release_id: str, *, actor: str, reason: str) -> Release:
    """Take a release out of choice: no rollout starts with it any more. Devices that run it go on.

    Raises:
        NotFoundError: There is no such release.
        InvalidRequestError: No reason is given.
        ConflictError: It is withdrawn already, or it is its task's champion.
    """
    ledger.check_reason(reason)
    release = get_release(session, release_id)
    champion = session.scalar(
        sa.select(ChampionEntry.release_id)
        .where(ChampionEntry.task == release.task)
        .order_by(ChampionEntry.id.desc())
        .limit(1)
    )
    if champion == release_id:
        raise ConflictError(f"release {release_id} is the champion of {release.task}: promote another one first")
    release.state = candidate_machine.advance(
        candidate_machine.RELEASE, release.state, "withdraw", subject=f"release {release_id}"
    )
    ledger.append(session, actor=actor, action="release.withdraw", subject=release_id, detail={"reason": reason})
    session.flush()
    return release


def approve_for(session: Session, release_id: str, *, device_id: str, had: Iterable[str] = ()) -> None:
    """Approve a release anew if the device has, wants or once committed one of its task that was approved later.

    Devices refuse to go below what they have committed: going back takes a new approval with a higher number, which
    the signed metadata then carry (see ``skerry_server.trust``). A release that is not there, or that is withdrawn, is
    left as it is.

    Args:
        session: Open transaction.
        release_id: What the device shall run.
        device_id: Which device.
        had: Releases that it has or was told to have.
    """
    release = session.get(Release, release_id)
    if release is None or release.state != candidate_machine.AVAILABLE:
        return
    committed = sa.select(UpdateEventRow.release_id).where(
        UpdateEventRow.device_id == device_id, UpdateEventRow.to_state == "committed"
    )
    above = session.scalar(
        sa.select(sa.func.max(Release.approved_version)).where(
            Release.task == release.task,
            Release.id != release_id,
            sa.or_(Release.id.in_([name for name in had if name]), Release.id.in_(committed)),
        )
    )
    if int(above or 0) <= release.approved_version:
        return
    before, release.approved_version = release.approved_version, _next_approval(session, release.task)
    ledger.append(
        session,
        actor="system",
        action="release.approve",
        subject=release_id,
        detail={"version": release.approved_version, "before": before, "device": device_id},
    )
    session.flush()


def get_candidate(session: Session, candidate_id: str) -> Candidate:
    """One candidate; raises NotFoundError."""
    candidate = session.get(Candidate, candidate_id)
    if candidate is None:
        raise NotFoundError("candidate", candidate_id)
    return candidate


def list_candidates(session: Session, *, task: str = "", state: str = "", limit: int = 100) -> list[Candidate]:
    """Candidates, newest first; an empty argument does not filter."""
    query = sa.select(Candidate).order_by(Candidate.created_ms.desc(), Candidate.id.desc()).limit(limit)
    if task:
        query = query.where(Candidate.task == task)
    if state:
        query = query.where(Candidate.state == state)
    return list(session.scalars(query))


def get_release(session: Session, release_id: str) -> Release:
    """One release; raises NotFoundError."""
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError("release", release_id)
    return release


def list_releases(session: Session, *, task: str = "", state: str = "", limit: int = 100) -> list[Release]:
    """Releases, newest first; an empty argument does not filter."""
    query = sa.select(Release).order_by(Release.created_ms.desc(), Release.sequence.desc()).limit(limit)
    if task:
        query = query.where(Release.task == task)
    if state:
        query = query.where(Release.state == state)
    return list(session.scalars(query))


def release_manifest(release: Release) -> ReleaseManifest:
    """What was signed, from the stored envelope."""
    return ReleaseManifest.FromString(SignedEnvelope.FromString(release.envelope).payload)


def release_parameters(session: Session, context: ServerContext, release_id: str) -> bytes:
    """The parameters (wire tensors) of a release: the start of a campaign or of a warm start.

    Raises:
        NotFoundError: There is no such release, or its parameters are not in the store.
    """
    candidate = get_candidate(session, get_release(session, release_id).candidate_id)
    return context.artifacts.get_bytes(candidate.parameters_sha256)


def _check_candidate(*, task: str, origin: str, parameters: bytes) -> None:
    try:
        check_name(task, field="task")
        if not decode_bundle(parameters):
            raise WireError("tensors", expected="at least one", got="none")
    except WireError as error:
        field = error.field if error.field == "task" else f"parameters.{error.field}"
        raise InvalidRequestError(field, expected=error.expected, got=error.got) from error
    if origin not in ORIGINS:
        raise InvalidRequestError("origin", expected=f"one of {', '.join(ORIGINS)}", got=origin)


def _add_release(session: Session, context: ServerContext, candidate: Candidate) -> Release:
    """Sign and insert; tries the next number when another process took the one that was seen as free."""
    for _ in range(_SEQUENCE_ATTEMPTS):
        newest = session.scalar(sa.select(sa.func.max(Release.sequence)).where(Release.task == candidate.task))
        release = _signed_release(context, candidate, sequence=int(newest or 0) + 1)
        release.approved_version = _next_approval(session, candidate.task)
        with contextlib.suppress(IntegrityError):
            with session.begin_nested():
                session.add(release)
            return release
    raise ConflictError(f"other releases of {candidate.task} are being published: publish {candidate.id} again")


def _next_approval(session: Session, task: str) -> int:
    """The number after that of every approval of a task; the newest row is held until the end of the transaction."""
    newest = session.scalar(
        sa.select(Release.approved_version)
        .where(Release.task == task)
        .order_by(Release.approved_version.desc())
        .limit(1)
        .with_for_update()
    )
    return int(newest or 0) + 1


def _signed_release(context: ServerContext, candidate: Candidate, *, sequence: int) -> Release:
    from skerry_models.bundle import describe_release
    from skerry_models.task import load_task
    from skerry_server.releases.deltas import add_deltas

    created_ms = now_ms()
    release_id = f"{candidate.task}-r{sequence}-{candidate.bundle_sha256[:8]}"
    manifest = describe_release(
        context.artifacts.bundle_folder(candidate.bundle_sha256),
        release_id=release_id,
        sequence=sequence,
        task=load_task(candidate.task),
        parent=candidate.parent_release,
        now_ms=created_ms,
    )
    add_deltas(manifest, candidate.deltas, context.artifacts)
    check_manifest(manifest)
    if manifest.bundle_sha256.hex() != candidate.bundle_sha256:
        raise RuntimeError(f"the manifest of {candidate.id} describes bundle {manifest.bundle_sha256.hex()}")
    payload = manifest.SerializeToString(deterministic=True)
    return Release(
        id=release_id,
        task=candidate.task,
        sequence=sequence,
        state=candidate_machine.AVAILABLE,
        candidate_id=candidate.id,
        origin=candidate.origin,
        parent_release=candidate.parent_release,
        bundle_sha256=candidate.bundle_sha256,
        edges_sha256=manifest.edges_sha256.hex(),
        train_step_sha256=manifest.train_step_sha256.hex(),
        envelope=context.signer.sign(signing.RELEASE, payload).SerializeToString(),
        metrics=dict(candidate.metrics),
        created_ms=created_ms,
    )
