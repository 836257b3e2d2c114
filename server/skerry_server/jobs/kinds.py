"""Which kinds of job there are, and where their code is; imported when a job of the kind runs.

A kind is a function ``run(job: JobContext) -> dict`` that returns the job's result as JSON. It must be idempotent:
its process may be killed after any of its effects, and is then run again with the same payload and folder.
Exceptions by :data:`FINAL_ERRORS` end the job; any other is tried again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.errors import ContractError
from skerry_models.errors import ModelsError
from skerry_server.context import ServerContext
from skerry_server.errors import RequestError
from skerry_server.jobs import job_machine
from skerry_server.store.tables import Job

#: Errors that a repetition cannot mend.
FINAL_ERRORS: tuple[type[Exception], ...] = (RequestError, ContractError, ModelsError)


class JobLostError(Exception):
    """The job is not this process's any more; whatever it would still write is void."""


@dataclass(frozen=True)
class JobContext:
    """What a job works with.

    Attributes:
        context: The control plane.
        job_id: Identifier of the job.
        payload: What was enqueued.
        folder: Private working folder; kept over attempts, removed by nobody.
        attempt: From 1. The store accepts the writes of the latest attempt only.
    """

    context: ServerContext
    job_id: str
    payload: dict[str, Any]
    folder: Path
    attempt: int = field(default=1)

    def progress(self, **fields: Any) -> None:
        """Merge JSON values into the job's progress, which the console shows.

        Raises:
            JobLostError: Another attempt has taken over.
        """
        with self.context.database.transaction() as session:
            job = own_job(session, self.job_id, self.attempt)
            job.progress = {**job.progress, **fields}


def own_job(session: Session, job_id: str, attempt: int) -> Job:
    """The row of a running job, locked, if ``attempt`` still owns it; raises JobLostError."""
    job = session.scalar(sa.select(Job).where(Job.id == job_id).with_for_update())
    if job is None or job.state != job_machine.RUNNING or job.attempts != attempt:
        raise JobLostError(f"attempt {attempt} of job {job_id} has been given up")
    return job


Run: TypeAlias = Callable[[JobContext], dict[str, Any]]
OnFailure: TypeAlias = Callable[[Session, Job], None]


@dataclass(frozen=True)
class JobKind:
    """A kind of job.

    Attributes:
        run: "module:function" that does the work.
        on_failure: "module:function" (session, job), called in the transaction that fails the job for good, so that
            what waits for it learns of it; empty for none. Runs in the controllers' process: no heavy import.
        threads: Threads of its numerical libraries, for kinds that mostly wait; 0 leaves that to them.
    """

    run: str
    on_failure: str = ""
    threads: int = 0


#: Every kind by its name; a program that adds one does it before it starts a runner or a worker.
KINDS: dict[str, JobKind] = {
    "exports": JobKind("skerry_server.training.export_job:run"),
    "train": JobKind("skerry_server.training.train_job:run"),
    "candidate": JobKind(
        "skerry_server.releases.candidate_job:run", on_failure="skerry_server.releases.candidate_job:on_failure"
    ),
    "registry-aliases": JobKind("skerry_server.registry.alias_job:run"),
    "campaign": JobKind("skerry_server.federation.campaign_job:run", threads=1),
    "drift-report": JobKind("skerry_server.monitoring.report_job:run"),
}


def load_run(kind: str) -> Run:
    """Import the function of a kind; raises KeyError or ImportError, which are defects."""
    run: Run = _load(KINDS[kind].run)
    return run


def threads(kind: str) -> int:
    """Threads of a kind's numerical libraries; 0, which leaves that to them, also for a kind not known here."""
    return KINDS[kind].threads if kind in KINDS else 0


def load_on_failure(kind: str) -> OnFailure | None:
    """Import the failure hook of a kind, if it has one."""
    name = KINDS[kind].on_failure if kind in KINDS else ""
    if not name:
        return None
    hook: OnFailure = _load(name)
    return hook


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
