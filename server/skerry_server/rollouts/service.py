"""Starting and stopping rollouts: the requests of people and of incidents. The work is the controller's.

A device runs one release at a time, so a device is in at most one active rollout, whatever the task.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.identifiers import new_id
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.fleet.service import cohort_device_ids, get_cohort
from skerry_server.rollouts import rollout_machine
from skerry_server.store.tables import Release, Rollout, RolloutDevice

#: Longest probation that a rollout may ask of a device (milliseconds).
LONGEST_PROBATION_MS = 86_400_000
#: Longest stage (milliseconds).
LONGEST_STAGE_MS = 7 * 86_400_000
#: Deadline of a stage when nobody says otherwise (milliseconds).
STAGE_DEADLINE_MS = 600_000


def start_rollout(
    session: Session,
    *,
    release_id: str,
    cohort_id: str,
    canary_percent: int,
    probation_ms: int,
    actor: str,
    incident_id: str = "",
    stage_deadline_ms: int = STAGE_DEADLINE_MS,
) -> Rollout:
    """Begin to bring a release to the devices that a cohort has now.

    Devices that join the cohort later are not part of it. Nothing is instructed yet: the controller takes it from
    here, in state "pending".

    Args:
        session: In a transaction; the caller commits.
        release_id: An available release.
        cohort_id: Identifier or name of the cohort.
        canary_percent: 1 to 100, share of the devices in the canary stage; at least one device.
        probation_ms: 0 to 86,400,000, how long a device watches the release before it commits.
        actor: Who asks, for the audit ledger.
        incident_id: Incident that asks for it, if any.
        stage_deadline_ms: 1 to 604,800,000, deadline of each stage.

    Raises:
        NotFoundError: There is no such release or cohort.
        InvalidRequestError: A number is out of range.
        ConflictError: The release is withdrawn, the cohort is empty, or a device is in another active rollout.
    """
    _check_range("canary_percent", canary_percent, 1, 100)
    _check_range("probation_ms", probation_ms, 0, LONGEST_PROBATION_MS)
    _check_range("stage_deadline_ms", stage_deadline_ms, 1, LONGEST_STAGE_MS)
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError("release", release_id)
    if release.state != "available":
        raise ConflictError(f"release {release_id} is {release.state}")
    cohort = get_cohort(session, cohort_id)
    device_ids = cohort_device_ids(session, cohort.id)
    if not device_ids:
        raise ConflictError(f"cohort {cohort_id} has no device")
    _refuse_overlap(session, set(device_ids))
    at_ms = now_ms()
    rollout = Rollout(
        id=new_id("rollout"),
        release_id=release_id,
        task=release.task,
        cohort_id=cohort.id,
        state="pending",
        detail=f"waits for {rollout_machine.WAITS_FOR['pending']}",
        canary_percent=canary_percent,
        probation_ms=probation_ms,
        stage_deadline_ms=stage_deadline_ms,
        stage_started_ms=at_ms,
        incident_id=incident_id,
        created_by=actor,
        created_ms=at_ms,
        updated_ms=at_ms,
    )
    session.add(rollout)
    session.flush()
    session.add_all(RolloutDevice(rollout_id=rollout.id, device_id=each, stage="fleet") for each in device_ids)
    ledger.append(
        session,
        actor=actor,
        action="rollout.start",
        subject=rollout.id,
        detail={
            "release": release_id,
            "cohort": cohort.id,
            "devices": len(device_ids),
            "canary_percent": canary_percent,
            "probation_ms": probation_ms,
            "incident": incident_id,
        },
    )
    session.flush()
    return rollout


def abort_rollout(session: Session, rollout_id: str, *, reason: str, actor: str) -> Rollout:
    """Stop a rollout: before anything was instructed it is aborted, afterwards it rolls back.

    Raises:
        InvalidRequestError: No reason is given.
        NotFoundError: There is no such rollout.
        ConflictError: It has ended or is rolling back already.
    """
    ledger.check_reason(reason)
    rollout = get_rollout(session, rollout_id)
    if "abort" not in rollout_machine.TRANSITIONS[rollout.state]:
        raise ConflictError(f"rollout {rollout_id} is {rollout.state} and cannot be aborted")
    rollout.state = rollout_machine.next_state(rollout.state, "abort")
    rollout.detail = f"aborted by {actor}: {reason}"
    rollout.stage_started_ms = rollout.updated_ms = now_ms()
    ledger.append(
        session, actor=actor, action="rollout.abort", subject=rollout_id, detail={"reason": reason, "to": rollout.state}
    )
    session.flush()
    return rollout


def get_rollout(session: Session, rollout_id: str) -> Rollout:
    """One rollout; raises :class:`NotFoundError`."""
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise NotFoundError("rollout", rollout_id)
    return rollout


def rollout_devices(session: Session, rollout_id: str) -> list[RolloutDevice]:
    """Devices of a rollout, canaries first, then by identifier."""
    return list(
        session.scalars(
            sa.select(RolloutDevice)
            .where(RolloutDevice.rollout_id == rollout_id)
            .order_by(RolloutDevice.stage, RolloutDevice.device_id)
        )
    )


def list_rollouts(session: Session, *, task: str = "", state: str = "", limit: int = 100) -> list[Rollout]:
    """Rollouts, newest first; empty filters select everything."""
    query = sa.select(Rollout).order_by(Rollout.created_ms.desc(), Rollout.id).limit(limit)
    if task:
        query = query.where(Rollout.task == task)
    if state:
        query = query.where(Rollout.state == state)
    return list(session.scalars(query))


def _refuse_overlap(session: Session, device_ids: set[str]) -> None:
    held = session.execute(
        sa.select(RolloutDevice.device_id, Rollout.id)
        .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
        .where(Rollout.state.in_(rollout_machine.ACTIVE))
        .order_by(RolloutDevice.device_id)
    )
    for device_id, rollout_id in held:
        if device_id in device_ids:
            raise ConflictError(f"device {device_id} is in rollout {rollout_id}, which has not ended")


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(field, expected=f"{low} to {high}", got=value)
