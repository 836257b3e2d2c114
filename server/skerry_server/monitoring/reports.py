"""Asking for an HTML report about an incident or a device; the job ``drift-report`` makes it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from skerry_server.audit import ledger
from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.incidents.service import get_incident
from skerry_server.jobs import queue
from skerry_server.store.tables import Device, Job


def request_report(session: Session, incident_id: str, actor: str) -> Job:
    """Enqueue the report of an incident.

    Args:
        session: In a transaction; the caller commits.
        incident_id: Which one.
        actor: Who asks, for the audit ledger.

    Returns:
        The job; its result is {"html_sha256", "devices", "rows"}, a blob of the artifact store.

    Raises:
        NotFoundError: There is no such incident.
        ConflictError: It names no device.
    """
    incident = get_incident(session, incident_id)
    if not incident.device_ids:
        raise ConflictError(f"incident {incident_id} names no device")
    return _enqueue(session, {"incident_id": incident_id}, subject=incident_id, actor=actor)


def request_device_report(session: Session, device_id: str, actor: str) -> Job:
    """Enqueue the report of one device under the release that it runs; raises :class:`NotFoundError`."""
    device = session.get(Device, device_id)
    if device is None:
        raise NotFoundError("device", device_id)
    return _enqueue(session, {"device_id": device_id}, subject=device_id, actor=actor)


def _enqueue(session: Session, payload: dict[str, str], *, subject: str, actor: str) -> Job:
    job = queue.enqueue(session, "drift-report", payload)
    ledger.append(session, actor=actor, action="report.request", subject=subject, detail={"job": job.id})
    return job
