"""Opening incidents and deciding about them: the requests of detectors and people.

At most one incident per task, release and kind is open; later evidence adds its devices and raises its severity.
``Incident.updated_ms`` is when its state was entered: deadlines count from there, and evidence does not move them.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.identifiers import new_id
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.incidents import guards, incident_machine
from skerry_server.store.tables import Incident

#: How long a decided incident silences the devices that it was about (milliseconds).
QUIET_MS = 24 * 3_600_000
#: Devices whose evidence an incident keeps; the others are only named.
EVIDENCE_DEVICES = 200
#: Devices that an incident names.
NAMED_DEVICES = 10_000


def report_evidence(
    session: Session,
    *,
    kind: str,
    task: str,
    release_id: str,
    device_id: str,
    severity: str,
    detail: str,
    evidence: dict[str, Any],
    actor: str,
    at_ms: int | None = None,
) -> Incident | None:
    """Open an incident, or add a device to the open one.

    Args:
        session: In a transaction; the caller commits.
        kind: "drift", "data-quality" or "health".
        task: Task of the release.
        release_id: Release under which it was seen.
        device_id: Device that it was seen on.
        severity: info, warn, act or critical.
        detail: One line for people; kept from the first evidence.
        evidence: JSON, kept per device, newest only; ``since_ms``, if it has one, is when the device changed: the
            earliest is kept, and labels count from there.
        actor: Which detector, for the audit ledger.
        at_ms: When; now if None.

    Returns:
        The incident, or None when a decision about this device still stands.
    """
    at_ms = now_ms() if at_ms is None else at_ms
    incident = session.scalar(
        sa.select(Incident)
        .where(
            Incident.task == task,
            Incident.release_id == release_id,
            Incident.kind == kind,
            Incident.state.in_(incident_machine.OPEN),
        )
        .order_by(Incident.opened_ms)
        .limit(1)
    )
    if incident is None:
        ended = session.scalars(
            sa.select(Incident).where(Incident.task == task, Incident.release_id == release_id, Incident.kind == kind)
        )
        for earlier in ended:
            if not guards.may_reopen(
                state=earlier.state,
                device_known=device_id in earlier.device_ids,
                updated_ms=earlier.updated_ms,
                now_ms=at_ms,
                quiet_ms=QUIET_MS,
            ):
                return None
        incident = Incident(
            id=new_id("incident"),
            kind=kind,
            task=task,
            release_id=release_id,
            state="detected",
            severity=severity,
            detail=detail,
            device_ids=[device_id],
            evidence={device_id: evidence},
            opened_ms=at_ms,
            updated_ms=at_ms,
        )
        session.add(incident)
        ledger.append(
            session,
            actor=actor,
            action="incident.open",
            subject=incident.id,
            detail={"kind": kind, "release": release_id, "device": device_id, "severity": severity, "detail": detail},
        )
        session.flush()
        return incident
    if device_id not in incident.device_ids and len(incident.device_ids) < NAMED_DEVICES:
        incident.device_ids = sorted([*incident.device_ids, device_id])
        ledger.append(
            session,
            actor=actor,
            action="incident.device",
            subject=incident.id,
            detail={"device": device_id, "severity": severity, "detail": detail},
        )
    if device_id in incident.evidence or len(incident.evidence) < EVIDENCE_DEVICES:
        first = incident.evidence.get(device_id, {}).get("since_ms")
        if first is not None:
            evidence = {**evidence, "since_ms": min(first, evidence.get("since_ms", first))}
        incident.evidence = {**incident.evidence, device_id: evidence}
    if guards.SEVERITIES.index(severity) > guards.SEVERITIES.index(incident.severity):
        incident.severity = severity
    session.flush()
    return incident


def move(
    session: Session, incident: Incident, event: str, *, actor: str, detail: str, at_ms: int, **more: Any
) -> Incident:
    """Send an event to an incident and write it down.

    Args:
        session: In a transaction; the caller commits.
        incident: Which one.
        event: An event of ``incident_machine``.
        actor: Who, for the audit ledger.
        detail: Why, for people.
        at_ms: When; the deadline of the new state counts from here.
        more: Further fields of the audit entry.

    Raises:
        IllegalIncidentEventError: Its state takes no such event; nothing was changed.
    """
    before = incident.state
    incident.state = incident_machine.next_state(before, event)
    incident.detail = detail
    incident.updated_ms = at_ms
    ledger.append(
        session,
        actor=actor,
        action=f"incident.{event}",
        subject=incident.id,
        detail={"from": before, "to": incident.state, "detail": detail, **more},
    )
    return incident


def approve(session: Session, incident_id: str, *, actor: str, reason: str = "") -> Incident:
    """Let a cure begin; closes an open breaker and forgets its failed attempts.

    Raises:
        NotFoundError: There is no such incident.
        ConflictError: It cannot be approved in its state, or it is of a kind that training never cures.
    """
    incident = get_incident(session, incident_id)
    if incident.kind not in guards.TRAINABLE:
        raise ConflictError(f"a {incident.kind} incident is never cured by training")
    _require(incident, "approve")
    if incident.state == "breaker_open":
        incident.attempts = 0
    incident.policy = ""
    detail = f"approved by {actor}: {reason or 'no reason given'}"
    return move(session, incident, "approve", actor=actor, detail=detail, at_ms=now_ms())


def dismiss(session: Session, incident_id: str, *, actor: str, reason: str = "") -> Incident:
    """Decide that nothing is done; the devices stay silent about it for a day.

    Raises:
        NotFoundError: There is no such incident.
        ConflictError: It has ended, or a cure is under way.
    """
    incident = get_incident(session, incident_id)
    _require(incident, "dismiss")
    detail = f"dismissed by {actor}: {reason or 'no reason given'}"
    return move(session, incident, "dismiss", actor=actor, detail=detail, at_ms=now_ms())


def get_incident(session: Session, incident_id: str) -> Incident:
    """One incident; raises :class:`NotFoundError`."""
    incident = session.get(Incident, incident_id)
    if incident is None:
        raise NotFoundError("incident", incident_id)
    return incident


def list_incidents(session: Session, *, task: str = "", state: str = "", limit: int = 100) -> list[Incident]:
    """Incidents, newest first; empty filters select everything, state "open" every one that has not ended."""
    query = sa.select(Incident).order_by(Incident.opened_ms.desc(), Incident.id).limit(limit)
    if task:
        query = query.where(Incident.task == task)
    if state == "open":
        query = query.where(Incident.state.in_(incident_machine.OPEN))
    elif state:
        query = query.where(Incident.state == state)
    return list(session.scalars(query))


def quarantined_device_ids(session: Session, task: str) -> set[str]:
    """Devices whose data is known to be broken: campaigns leave them out."""
    rows = session.scalars(
        sa.select(Incident).where(
            Incident.task == task, Incident.kind == "data-quality", Incident.state.in_(incident_machine.OPEN)
        )
    )
    return {device_id for incident in rows for device_id in incident.device_ids}


def _require(incident: Incident, event: str) -> None:
    if event not in incident_machine.TRANSITIONS[incident.state]:
        raise ConflictError(f"incident {incident.id} is {incident.state}: it takes no {event!r}")
