"""``skerry incident``, ``skerry policy`` and ``skerry audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skerry_server.cli.command import (
    Limit,
    Reason,
    Settings,
    Shell,
    StateFilter,
    TaskFilter,
    command,
    given,
    group,
    parse_settings,
)
from skerry_server.cli.output import Fields, age, moment, pairs
from skerry_server.cli.waiting import FailedError, wait_for
from skerry_server.errors import PlatformError

incident = group("incident", help="Incidents: drift and bad health, and what is done about it.")
policy = group("policy", help="Policies: named rules that may act without a person.")
audit = group("audit", help="The audit ledger: who changed what, when.")

IncidentId = Annotated[str, typer.Argument(metavar="INCIDENT", help="Identifier of the incident.")]

_INCIDENT: Fields = {
    "incident": lambda row: row["id"],
    "kind": lambda row: row["kind"],
    "severity": lambda row: row["severity"],
    "state": lambda row: row["state"],
    "devices": lambda row: len(row["device_ids"]),
    "opened": lambda row: age(row["opened_ms"]),
    "detail": lambda row: row["detail"],
}
_INCIDENT_DETAILS: Fields = {
    **_INCIDENT,
    "task": lambda row: row["task"],
    "release": lambda row: row["release_id"],
    "devices": lambda row: ", ".join(row["device_ids"]),
    "policy": lambda row: row["policy"],
    "attempts": lambda row: row["attempts"],
    "campaign": lambda row: row["campaign_id"],
    "candidate": lambda row: row["candidate_id"],
    "release made": lambda row: row["release_made"],
    "rollout": lambda row: row["rollout_id"],
    "you may": lambda row: ", ".join(row["actions"]),
}
_POLICY: Fields = {
    "policy": lambda row: row["name"],
    "task": lambda row: row["task"],
    "enabled": lambda row: "yes" if row["enabled"] else "no",
    "settings": lambda row: pairs(row["settings"]),
}
_AUDIT: Fields = {
    "no.": lambda row: row["sequence"],
    "at": lambda row: moment(row["at_ms"]),
    "actor": lambda row: row["actor"],
    "action": lambda row: row["action"],
    "subject": lambda row: row["subject"],
    "detail": lambda row: pairs(row["detail"]),
}


@command(incident, "list", example="skerry incident list --state proposed")
def list_incidents(
    shell: Shell,
    limit: Limit = 50,
    task: TaskFilter = "",
    state: StateFilter = "",
) -> None:
    """List incidents, newest first."""
    rows = shell.api.items("incidents", limit=limit, **given(task=task, state=state))
    shell.out.rows(rows, _INCIDENT, empty="no incidents")


@command(incident, "show", example="skerry incident show incident-4c --json")
def show_incident(shell: Shell, incident_id: IncidentId) -> None:
    """Show an incident."""
    shell.out.details(shell.api.get("incidents", incident_id), _INCIDENT_DETAILS)


@command(incident, "approve", example="skerry incident approve incident-4c --reason 'new camera mount'")
def approve_incident(shell: Shell, incident_id: IncidentId, reason: Reason = "") -> None:
    """Let the cure that an incident proposes begin."""
    document = shell.api.post("incidents", incident_id, "approve", body={"reason": reason})
    shell.out.details(document, _INCIDENT_DETAILS)


@command(incident, "dismiss", example="skerry incident dismiss incident-4c --reason 'maintenance'")
def dismiss_incident(shell: Shell, incident_id: IncidentId, reason: Reason = "") -> None:
    """Decide that nothing is done about an incident."""
    document = shell.api.post("incidents", incident_id, "dismiss", body={"reason": reason})
    shell.out.details(document, _INCIDENT_DETAILS)


@command(incident, "report", example="skerry incident report incident-4c --output drift.html")
def report_incident(
    shell: Shell,
    incident_id: IncidentId,
    output: Annotated[Path, typer.Option("--output", help="HTML file that is written.")] = Path("drift-report.html"),
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for it.")] = 300,
) -> None:
    """Write a drift report of an incident as one HTML file."""
    job_id = shell.api.post("incidents", incident_id, "report")["id"]
    done = wait_for(
        lambda: shell.api.get("jobs", job_id),
        ended=lambda row: row["state"] in ("done", "failed"),
        describe=lambda row: f"{row['id']}: {row['state']}",
        what=f"the report of {incident_id}",
        timeout_s=timeout,
        out=shell.out,
    )
    if done["state"] == "failed":
        raise FailedError(f"the report of {incident_id} failed: {done['error']}")
    page = shell.api.text("incidents", incident_id, "report")
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise PlatformError(
            f"{output} cannot be written ({error.strerror})", remedy="choose another --output"
        ) from error
    if shell.out.as_json:
        shell.out.document({"incident": incident_id, "job": job_id, "file": str(output), "bytes": len(page.encode())})
    else:
        shell.out.say(f"wrote {output}")


@command(policy, "list", example="skerry policy list")
def list_policies(shell: Shell, limit: Limit = 100) -> None:
    """List policies."""
    shell.out.rows(
        shell.api.items("policies", limit=limit), _POLICY, empty="no policies: every cure waits for a person"
    )


@command(policy, "set", example="skerry policy set auto-digits digits --set rounds=5 --set canary_percent=20")
def set_policy(
    shell: Shell,
    name: Annotated[str, typer.Argument(help="Name of the policy.")],
    task: Annotated[str, typer.Argument(help="Task whose incidents it answers.")],
    settings: Settings = None,
    enabled: Annotated[bool, typer.Option("--enabled/--disabled", help="Whether it may act.")] = True,
) -> None:
    """Create or replace a policy."""
    body = {"task": task, "enabled": enabled, "settings": parse_settings(settings)}
    shell.out.details(shell.api.put("policies", name, body=body), _POLICY)


@command(audit, "list", example="skerry audit list --actor ada --limit 20")
def list_audit(
    shell: Shell,
    limit: Limit = 50,
    actor: Annotated[str, typer.Option("--actor", help="Only what this actor did.")] = "",
    action: Annotated[str, typer.Option("--action", help="Only this action, for example rollout.start.")] = "",
    subject: Annotated[str, typer.Option("--subject", help="Only what was done to this.")] = "",
) -> None:
    """List the ledger, newest first."""
    rows = shell.api.items("audit", limit=limit, **given(actor=actor, action=action, subject=subject))
    shell.out.rows(rows, _AUDIT, empty="the ledger is empty")


@command(audit, "verify", example="skerry audit verify")
def verify_audit(shell: Shell) -> None:
    """Recompute the chain of hashes; exit code 1 when it does not hold."""
    document = shell.api.get("audit", "verify")
    shell.out.details(
        document,
        {
            "ledger": lambda row: "intact" if row["intact"] else "broken",
            "entries": lambda row: row["entries"],
            "first broken": lambda row: row["first_broken"],
        },
    )
    if not document["intact"]:
        raise FailedError(f"the ledger does not hold from entry {document['first_broken']} on")
