"""``skerry campaign``: federated training on the devices."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry_server.cli.command import (
    Limit,
    Reason,
    Settings,
    Shell,
    StateFilter,
    TaskFilter,
    Timeout,
    Wait,
    command,
    given,
    group,
    parse_nested_settings,
)
from skerry_server.cli.output import Document, Fields, age, amount, moment, pairs, percent
from skerry_server.cli.waiting import FailedError, wait_for

campaign = group("campaign", help="Campaigns: federated training on the devices.")

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task, as `skerry task list` shows it.")]
CampaignId = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Identifier of the campaign.")]

_CAMPAIGN: Fields = {
    "campaign": lambda row: row["id"],
    "task": lambda row: row["task"],
    "strategy": lambda row: row["strategy"],
    "state": lambda row: row["state"],
    "rounds": lambda row: f"{len(row['rounds'])}/{row['rounds_planned']}",
    "accuracy": lambda row: percent(row["rounds"][-1]["accuracy"]) if row["rounds"] else "",
    "epsilon": lambda row: _epsilon(row),
    "bytes": lambda row: _bytes(row),
    "started": lambda row: age(row["created_ms"]),
}
_CAMPAIGN_DETAILS: Fields = {
    **{name: value for name, value in _CAMPAIGN.items() if name not in ("epsilon", "bytes")},
    "phase": lambda row: f"round {len(row['rounds']) + 1}: {row['phase']}" if row["phase"] else "",
    "waits for": lambda row: ", until ".join(filter(None, (row["waits_for"], moment(row["deadline_ms"])))),
    "detail": lambda row: row["detail"],
    "can be done": lambda row: ", ".join(row["actions"]),
    "base": lambda row: row["base_release"],
    "cohort": lambda row: row["cohort_id"],
    "settings": lambda row: pairs({name: value for name, value in row["settings"].items() if value not in ({}, "")}),
    "accuracy by round": lambda row: "  ".join(percent(each["accuracy"]) for each in row["rounds"]),
    "spent": lambda row: _spent(row),
    "personal": lambda row: _personal(row),
    "calibration": lambda row: _calibration(row),
    "privacy spent": lambda row: _epsilon(row),
    "over all campaigns": lambda row: _epsilon_total(row),
    "devices": lambda row: "  ".join(
        f"{each['device_id']}: {each['state']}" + (f" through {each['gateway_id']}" if each["gateway_id"] else "")
        for each in row["participants"]
        if each["state"] != "excluded"
    ),
    "why devices stay out": lambda row: "\n".join(
        f"{each['devices']} {each['code']}: {each['meaning']} ({each['example']})" for each in row["reasons"]
    ),
    "candidate": lambda row: row["candidate_id"],
    "incident": lambda row: row["incident_id"],
    "started by": lambda row: row["created_by"],
    "approved by": lambda row: row["approved_by"],
}


def _bytes(row: Document) -> str:
    moved = row["spent"]["bytes_down"] + row["spent"]["bytes_up"]
    return amount(moved) if moved else ""


def _spent(row: Document) -> str:
    spent = row["spent"]
    if not row["rounds"]:
        return ""
    return (
        f"{amount(spent['bytes_down'])} down, {amount(spent['bytes_up'])} up, "
        f"{spent['minutes']:.1f} min, about {spent['energy_wh']:.3g} Wh"
    )


def _personal(row: Document) -> str:
    found = row["personal"]
    if found is None:
        return ""
    own, everybody = percent(found["personal_accuracy"]), percent(found["global_accuracy"])
    gain = f"{found['gaining']} of {found['devices']} devices gain, {found['losing']} lose"
    return f"{own} with own parameters, {everybody} without\n{gain} (round {found['round']})"


def _calibration(row: Document) -> str:
    found = row["calibration"]
    if found is None:
        return ""
    if found["source"] == "devices":
        return f"INT8 ranges of {found['rows']} rows on {found['devices']} devices"
    return f"central: {found['reason']}"


def _epsilon_total(row: Document) -> str:
    found = row["privacy_total"]
    if found is None:
        return ""
    bound = f", limit {found['limit']:g}" if found["limit"] else ""
    apart = f"; {found['unprotected']} without privacy" if found["unprotected"] else ""
    return (
        f"{found['epsilon']:.3g} at delta {found['delta']:.0e} of a device in {found['campaigns']} of "
        f"{found['private']} private campaigns{bound}{apart}"
    )


def _epsilon(row: Document) -> str:
    spent = row["spent"]
    return "" if spent["epsilon"] is None else f"{spent['epsilon']:.3g} at delta {spent['delta']:.0e}"


@command(campaign, "list", example="skerry campaign list --task digits")
def list_campaigns(
    shell: Shell,
    limit: Limit = 50,
    task: TaskFilter = "",
    state: StateFilter = "",
) -> None:
    """List campaigns, newest first."""
    rows = shell.api.items("campaigns", limit=limit, **given(task=task, state=state))
    shell.out.rows(rows, _CAMPAIGN, empty="no campaigns")


@command(campaign, "show", example="skerry campaign show campaign-3f9c --wait")
def show_campaign(shell: Shell, campaign_id: CampaignId, wait: Wait = False, timeout: Timeout = 1800) -> None:
    """Show a campaign with its rounds and devices, what it spent, and why devices stay out."""
    if wait:
        _finish_campaign(shell, campaign_id, timeout)
    else:
        shell.out.details(shell.api.get("campaigns", campaign_id), _CAMPAIGN_DETAILS)


@command(campaign, "start", example="skerry campaign start digits --strategy fedprox --set rounds=5 --wait")
def start_campaign(
    shell: Shell,
    task: TaskName,
    cohort: Annotated[str, typer.Option("--cohort", help="Devices that train, by name or identifier.")] = "all",
    strategy: Annotated[
        str, typer.Option("--strategy", help="fedavg, fedprox, scaffold, trimmedmean, fedbuff, ...")
    ] = "fedavg",
    settings: Settings = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Make it only; `skerry campaign approve` lets it begin.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = 1800,
) -> None:
    """Train on the devices of a cohort. A dot reaches into a setting: --set privacy.mode=central."""
    body = {
        "task": task,
        "cohort_id": cohort,
        "strategy": strategy,
        "settings": parse_nested_settings(settings),
        "draft": draft,
    }
    document = shell.api.post("campaigns", body=body)
    if not wait:
        shell.out.details(document, _CAMPAIGN_DETAILS)
        return
    shell.out.errors.print(f"{document['id']} started", markup=False)
    _finish_campaign(shell, document["id"], timeout)


@command(campaign, "approve", example="skerry campaign approve campaign-3f9c --wait")
def approve_campaign(
    shell: Shell, campaign_id: CampaignId, reason: Reason = "", wait: Wait = False, timeout: Timeout = 1800
) -> None:
    """Let a draft begin; it starts from the task's champion of now."""
    _act(shell, campaign_id, "approve", reason, wait=wait, timeout=timeout)


@command(campaign, "pause", example="skerry campaign pause campaign-3f9c --reason 'maintenance at site north'")
def pause_campaign(shell: Shell, campaign_id: CampaignId, reason: Reason) -> None:
    """Ask nothing of devices until it is resumed; nothing that was done is lost."""
    _act(shell, campaign_id, "pause", reason)


@command(campaign, "resume", example="skerry campaign resume campaign-3f9c --wait")
def resume_campaign(
    shell: Shell, campaign_id: CampaignId, reason: Reason = "", wait: Wait = False, timeout: Timeout = 1800
) -> None:
    """Go on where a campaign was paused."""
    _act(shell, campaign_id, "resume", reason, wait=wait, timeout=timeout)


@command(campaign, "abort", example="skerry campaign abort campaign-3f9c --reason 'wrong cohort'")
def abort_campaign(shell: Shell, campaign_id: CampaignId, reason: Reason) -> None:
    """Abort a campaign; its committed rounds are kept."""
    _act(shell, campaign_id, "abort", reason)


def _act(shell: Shell, campaign_id: str, action: str, reason: str, *, wait: bool = False, timeout: float = 0.0) -> None:
    document = shell.api.post("campaigns", campaign_id, action, body={"reason": reason})
    if wait:
        _finish_campaign(shell, campaign_id, timeout)
    else:
        shell.out.details(document, _CAMPAIGN_DETAILS)


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
    state = f"{row['state']} ({row['phase']})" if row["phase"] else row["state"]
    said = f"{row['id']}: {state}, {len(row['rounds'])} of {row['rounds_planned']} rounds"
    if not row["rounds"]:
        return f"{said}, {row['detail']}" if row["detail"] else said
    newest = row["rounds"][-1]
    return f"{said}, {newest['accepted']} devices, accuracy {percent(newest['accuracy'])}"
