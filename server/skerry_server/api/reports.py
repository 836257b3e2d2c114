"""Drift reports of incidents: finding the job that writes or wrote one, and reading what it wrote."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.context import ServerContext
from skerry_server.errors import NotFoundError
from skerry_server.monitoring.reports import request_report
from skerry_server.store.tables import Job

#: The page brings scripts of a library: it runs with no origin, no network, and cannot reach the console.
SANDBOX = "; ".join(
    (
        "sandbox allow-scripts allow-downloads",
        "default-src 'none'",
        "script-src 'unsafe-inline' 'unsafe-eval'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "font-src data:",
        "frame-ancestors 'none'",
    )
)


def request(session: Session, incident_id: str, *, actor: str) -> Job:
    """The job that writes a report of an incident: the one under way, or a new one.

    Raises:
        NotFoundError: There is no such incident.
        ConflictError: It names no device.
    """
    under_way = _newest(session, incident_id, ("queued", "running"))
    return under_way or request_report(session, incident_id, actor)


def read(session: Session, context: ServerContext, incident_id: str) -> bytes:
    """The newest report of an incident as an HTML document.

    Raises:
        NotFoundError: None was written yet.
    """
    job = _newest(session, incident_id, ("done",))
    if job is None:
        raise NotFoundError("drift report of incident", incident_id)
    return context.artifacts.get_bytes(str(job.result["html_sha256"]))


def _newest(session: Session, incident_id: str, states: tuple[str, ...]) -> Job | None:
    return session.scalar(
        sa.select(Job)
        .where(
            Job.kind == "drift-report",
            Job.state.in_(states),
            Job.payload["incident_id"].as_string() == incident_id,
        )
        .order_by(Job.created_ms.desc(), Job.id.desc())
        .limit(1)
    )
