"""``skerry task``, ``skerry train``, ``skerry job`` and ``skerry campaign``."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry_server.cli.command import (
    Limit,
    Reason,
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
from skerry_server.cli.output import Document, Fields, age, moment, number, pairs, percent
from skerry_server.cli.waiting import FailedError, wait_for

task = group("task", help="Tasks: what can be learned.")
train = group("train", help="Central training.")
job = group("job", help="Jobs: work in processes of their own.")
campaign = group("campaign", help="Campaigns: federated training on the devices.")

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task, as `skerry task list` shows it.")]
CampaignId = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Identifier of the campaign.")]
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
_CAMPAIGN: Fields = {
    "campaign": lambda row: row["id"],
    "task": lambda row: row["task"],
    "strategy": lambda row: row["strategy"],
    "state": lambda row: row["state"],
    "rounds": lambda row: f"{len(row['rounds'])}/{row['rounds_planned']}",
    "accuracy": lambda row: percent(row["rounds"][-1]["accuracy"]) if row["rounds"] else "",
    "started": lambda row: age(row["created_ms"]),
}
_CAMPAIGN_DETAILS: Fields = {
    **_CAMPAIGN,
    "detail": lambda row: row["detail"],
    "base": lambda row: row["base_release"],
    "cohort": lambda row: row["cohort_id"],
    "settings": lambda row: pairs(row["settings"]),
    "accuracy by round": lambda row: "  ".join(percent(each["accuracy"]) for each in row["rounds"]),
    "devices": lambda row: "  ".join(f"{each['device_id']}: {each['state']}" for each in row["participants"]),
    "candidate": lambda row: row["candidate_id"],
    "incident": lambda row: row["incident_id"],
    "started by": lambda row: row["created_by"],
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


@command(campaign, "list", example="skerry campaign list --task digits")
def list_campaigns(
    shell: Shell,
    limit: Limit = 50,
    task: Annotated[str, typer.Option("--task", help="Only this task.")] = "",
    state: Annotated[str, typer.Option("--state", help="Only this state.")] = "",
) -> None:
    """List campaigns, newest first."""
    rows = shell.api.items("campaigns", limit=limit, **given(task=task, state=state))
    shell.out.rows(rows, _CAMPAIGN, empty="no campaigns")


@command(campaign, "show", example="skerry campaign show campaign-3f9c --wait")
def show_campaign(shell: Shell, campaign_id: CampaignId, wait: Wait = False, timeout: Timeout = 1800) -> None:
    """Show a campaign with its rounds and devices."""
    if wait:
        _finish_campaign(shell, campaign_id, timeout)
    else:
        shell.out.details(shell.api.get("campaigns", campaign_id), _CAMPAIGN_DETAILS)


@command(campaign, "start", example="skerry campaign start digits --strategy fedprox --set rounds=5 --wait")
def start_campaign(
    shell: Shell,
    task: TaskName,
    cohort: Annotated[str, typer.Option("--cohort", help="Devices that train, by name or identifier.")] = "all",
    strategy: Annotated[str, typer.Option("--strategy", help="fedavg or fedprox.")] = "fedavg",
    settings: Settings = None,
    wait: Wait = False,
    timeout: Timeout = 1800,
) -> None:
    """Train on the devices of a cohort."""
    body = {"task": task, "cohort_id": cohort, "strategy": strategy, "settings": parse_settings(settings)}
    document = shell.api.post("campaigns", body=body)
    if not wait:
        shell.out.details(document, _CAMPAIGN_DETAILS)
        return
    shell.out.errors.print(f"{document['id']} started", markup=False)
    _finish_campaign(shell, document["id"], timeout)


@command(campaign, "abort", example="skerry campaign abort campaign-3f9c --reason 'wrong cohort'")
def abort_campaign(shell: Shell, campaign_id: CampaignId, reason: Reason) -> None:
    """Abort a campaign; its committed rounds are kept."""
    document = shell.api.post("campaigns", campaign_id, "abort", body={"reason": reason})
    shell.out.details(document, _CAMPAIGN_DETAILS)


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


def _finish_campaign(shell: Shell, campaign_id: str, timeout: float) -> None:
    done = wait_for(
        lambda: shell.api.get("campaigns", campaign_id),
        ended=lambda row: bool(row["finished"]),
        describe=_describe_campaign,
        what=campaign_id,
        timeout_s=timeout,
        out=shell.out,
    )
    shell.out.details(done, _CAMPAIGN_DETAILS)
    if not done["succeeded"]:
        raise FailedError(f"{campaign_id} is {done['state']}: {done['detail']}")


def _describe_campaign(row: Document) -> str:
    said = f"{row['id']}: {row['state']}, {len(row['rounds'])} of {row['rounds_planned']} rounds"
    if not row["rounds"]:
        return f"{said}, {row['detail']}" if row["detail"] else said
    newest = row["rounds"][-1]
    return f"{said}, {newest['accepted']} devices, accuracy {percent(newest['accuracy'])}"
