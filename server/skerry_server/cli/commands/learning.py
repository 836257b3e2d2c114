"""``skerry task``, ``skerry train`` and ``skerry job``."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry_server.cli.command import (
    Limit,
    Settings,
    Shell,
    Timeout,
    Wait,
    command,
    given,
    group,
    parse_settings,
)
from skerry_server.cli.commands.releases import CANDIDATE_DETAILS, wait_for_gates
from skerry_server.cli.output import Document, Fields, age, moment, number, pairs
from skerry_server.cli.waiting import FailedError, wait_for

task = group("task", help="Tasks: what can be learned.")
train = group("train", help="Central training.")
job = group("job", help="Jobs: work in processes of their own.")

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task, as `skerry task list` shows it.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Identifier of the job.")]

_TASK: Fields = {
    "task": lambda row: row["name"],
    "releases": lambda row: row["releases"],
    "champion": lambda row: row["champion"],
}
_JOB: Fields = {
    "job": lambda row: row["id"],
    "kind": lambda row: row["kind"],
    "state": lambda row: row["state"],
    "made": lambda row: age(row["created_ms"]),
    "progress": lambda row: _progress(row),
}
_JOB_DETAILS: Fields = {
    **_JOB,
    "attempts": lambda row: f"{row['attempts']} of {row['maximum_attempts']}",
    "started": lambda row: moment(row["started_ms"]),
    "finished": lambda row: moment(row["finished_ms"]),
    "result": lambda row: pairs(row["result"]),
    "error": lambda row: row["error"],
}


def _progress(row: Document) -> str:
    return " ".join(f"{name}={number(value)}" for name, value in row["progress"].items())


@command(task, "list", example="skerry task list")
def list_tasks(shell: Shell) -> None:
    """List the installed tasks."""
    shell.out.rows(shell.api.get("tasks")["items"], _TASK, empty="no tasks are installed")


@command(train, "start", example="skerry train start digits --set epochs=20 --wait")
def start_training(
    shell: Shell, task: TaskName, settings: Settings = None, wait: Wait = False, timeout: Timeout = 1800
) -> None:
    """Train centrally. With --wait the candidate's gates are waited for, too."""
    document = shell.api.post("trainings", body={"task": task, "settings": parse_settings(settings)})
    if not wait:
        shell.out.details(document, _JOB_DETAILS)
        return
    shell.out.errors.print(f"{document['id']} started", markup=False)
    done = _wait_for_job(shell, document["id"], timeout)
    candidate = wait_for_gates(shell, str(done["result"]["candidate_id"]), timeout)
    shell.out.details(candidate, CANDIDATE_DETAILS)
    if candidate["state"] == "rejected":
        raise FailedError(f"{candidate['id']} did not pass its gates")


@command(job, "list", example="skerry job list --state running")
def list_jobs(
    shell: Shell,
    limit: Limit = 50,
    kind: Annotated[str, typer.Option("--kind", help="Only this kind.")] = "",
    state: Annotated[str, typer.Option("--state", help="queued, running, done or failed.")] = "",
) -> None:
    """List jobs, newest first."""
    rows = shell.api.items("jobs", limit=limit, **given(kind=kind, state=state))
    shell.out.rows(rows, _JOB, empty="no jobs")


@command(job, "show", example="skerry job show job-1f00aa --wait")
def show_job(shell: Shell, job_id: JobId, wait: Wait = False, timeout: Timeout = 1800) -> None:
    """Show a job."""
    document = _wait_for_job(shell, job_id, timeout) if wait else shell.api.get("jobs", job_id)
    shell.out.details(document, _JOB_DETAILS)


def _wait_for_job(shell: Shell, job_id: str, timeout: float) -> Document:
    done = wait_for(
        lambda: shell.api.get("jobs", job_id),
        ended=lambda row: row["state"] in ("done", "failed"),
        describe=lambda row: f"{row['id']}: {row['state']} {_progress(row)}".rstrip(),
        what=job_id,
        timeout_s=timeout,
        out=shell.out,
    )
    if done["state"] == "failed":
        raise FailedError(f"{job_id} failed: {done['error']}")
    return done
