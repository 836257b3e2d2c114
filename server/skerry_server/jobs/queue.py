"""The queue of jobs, as rows of the store. Every change of a job's state is made here.

Functions work inside the caller's transaction, so that a job is enqueued if and only if the change that asks for it
is committed. ``finished_ms`` is the end of the last attempt: a job that waits again starts after a back-off from it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.identifiers import new_id
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.jobs import job_machine
from skerry_server.jobs.kinds import KINDS, load_on_failure, own_job
from skerry_server.store.tables import Job

#: Longest error text that is kept (characters).
_ERROR_CHARACTERS = 2_000


def enqueue(
    session: Session,
    kind: str,
    payload: dict[str, Any],
    *,
    job_id: str | None = None,
    maximum_attempts: int = 5,
) -> Job:
    """Add a job.

    Args:
        session: Open transaction.
        kind: A key of :data:`skerry_server.jobs.kinds.KINDS`.
        payload: JSON that the job gets.
        job_id: Chosen by a caller that may call again: the same identifier is the same job.
        maximum_attempts: How often it is started at most, at least 1.

    Returns:
        The new job, or the one that has this identifier.

    Raises:
        ValueError: Unknown kind or no attempts: a defect of the caller.
        ConflictError: The identifier belongs to another kind or payload.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of job {kind!r}; known: {', '.join(sorted(KINDS))}")
    if maximum_attempts < 1:
        raise ValueError(f"maximum_attempts must be at least 1, got {maximum_attempts}")
    if job_id is not None:
        existing = session.get(Job, job_id)
        if existing is not None:
            if existing.kind != kind or existing.payload != payload:
                raise ConflictError(f"job {job_id} exists with another kind or payload")
            return existing
    job = Job(
        id=job_id or new_id("job"),
        kind=kind,
        payload=payload,
        state=job_machine.QUEUED,
        attempts=0,
        maximum_attempts=maximum_attempts,
        progress={},
        result={},
        created_ms=now_ms(),
    )
    session.add(job)
    session.flush()
    return job


def restart(session: Session, job_id: str, *, maximum_attempts: int = 5) -> Job:
    """Queue a job again that has ended, with its folder and so many attempts more.

    A job that has not ended is left alone. Attempts count on, so that a process of an earlier one can never be taken
    for the new one's.

    Raises:
        NotFoundError: There is no such job.
    """
    job = get_job(session, job_id)
    if job.state in (job_machine.DONE, job_machine.FAILED):
        job.state = job_machine.advance(job.state, "restart", job_id=job_id)
        job.maximum_attempts = job.attempts + maximum_attempts
        job.result, job.error, job.finished_ms = {}, "", 0
        session.flush()
    return job


def get_job(session: Session, job_id: str) -> Job:
    """One job; raises NotFoundError."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError("job", job_id)
    return job


def running_jobs(session: Session) -> list[Job]:
    """Jobs in state "running"."""
    return list(session.scalars(sa.select(Job).where(Job.state == job_machine.RUNNING).order_by(Job.id)))


def has_queued(session: Session) -> bool:
    """Whether a job waits, due or not."""
    return session.scalar(sa.select(Job.id).where(Job.state == job_machine.QUEUED).limit(1)) is not None


def claim_next(session: Session, *, at_ms: int) -> Job | None:
    """Start the oldest queued job whose back-off is over: running, one attempt more, no process yet."""
    waiting = sa.select(Job).where(Job.state == job_machine.QUEUED).order_by(Job.created_ms, Job.id)
    for job in session.scalars(waiting.with_for_update(skip_locked=True)):
        if job.finished_ms and at_ms < job.finished_ms + job_machine.backoff_ms(job.attempts):
            continue
        job.state = job_machine.advance(job.state, "start", job_id=job.id)
        job.attempts += 1
        job.pid = 0
        job.started_ms = at_ms
        return job
    return None


def attach(session: Session, job_id: str, *, attempt: int, pid: int) -> Job:
    """Record the process that works on an attempt; raises JobLostError when another one does already."""
    job = own_job(session, job_id, attempt)
    job.pid = pid
    return job


def succeed(session: Session, job_id: str, *, attempt: int, result: dict[str, Any]) -> None:
    """Finish a job; raises JobLostError when another attempt has taken over."""
    job = own_job(session, job_id, attempt)
    job.state = job_machine.advance(job.state, "succeed", job_id=job_id)
    job.result, job.error = result, ""
    _ended(job)


def refuse(session: Session, job_id: str, *, attempt: int, error: str) -> None:
    """Fail a job that no repetition can help; raises JobLostError when another attempt has taken over."""
    _give_up(session, own_job(session, job_id, attempt), "refuse", error)


def lose(session: Session, job_id: str, *, attempt: int, error: str) -> None:
    """Queue a job again whose attempt did not finish, or fail it when no attempt is left; raises JobLostError."""
    job = own_job(session, job_id, attempt)
    event = job_machine.trouble(attempts=job.attempts, maximum_attempts=job.maximum_attempts)
    error = f"attempt {job.attempts} of {job.maximum_attempts}: {error}"
    if event == "exhaust":
        _give_up(session, job, event, error)
        return
    job.state = job_machine.advance(job.state, event, job_id=job_id)
    job.error = error[:_ERROR_CHARACTERS]
    _ended(job)


def interrupt(session: Session, job_id: str, *, attempt: int) -> None:
    """Queue a job again whose process was stopped on purpose; the attempt does not count. Raises JobLostError."""
    job = own_job(session, job_id, attempt)
    job.state = job_machine.advance(job.state, "interrupt", job_id=job_id)
    job.attempts -= 1
    job.pid = 0
    job.finished_ms = 0


def _give_up(session: Session, job: Job, event: str, error: str) -> None:
    job.state = job_machine.advance(job.state, event, job_id=job.id)
    job.error = error[:_ERROR_CHARACTERS]
    _ended(job)
    session.flush()
    hook = load_on_failure(job.kind)
    if hook is not None:
        hook(session, job)


def _ended(job: Job) -> None:
    job.pid = 0
    job.finished_ms = now_ms()
