"""Whom a campaign invites and when it begins. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from skerry_server.federation.settings import CampaignSettings

Verdict = Literal["wait", "start", "fail"]


@dataclass(frozen=True)
class DeviceFacts:
    """What the store knows of a device of the cohort.

    Attributes:
        device_id: Its name.
        online: The broker has a connection of it.
        flower_node_id: Decimal; empty or "0" while its training process has not joined.
        labelled_samples: What it can train on.
        task: Of its active release; empty without one.
        train_step_sha256: Of its active release.
        ineligible_reason: Why the device itself stays out (power, heat, ...); empty for no reason.
        quarantined: A data-quality incident about it is open: what it would learn from is known to be broken.
    """

    device_id: str
    online: bool
    flower_node_id: str
    labelled_samples: int
    task: str
    train_step_sha256: str
    ineligible_reason: str
    quarantined: bool


def ineligible(facts: DeviceFacts, *, task: str, train_step_sha256: str, minimum_samples: int) -> str:
    """Why a device is not invited now; empty when it is."""
    if not facts.online:
        return "offline"
    if facts.ineligible_reason:
        return facts.ineligible_reason
    if facts.quarantined:
        return "quarantined: an incident about the quality of its data is open"
    if facts.task != task:
        return f"runs {facts.task or 'no task'}, not {task}"
    if facts.train_step_sha256 != train_step_sha256:
        return "runs a release with another network"
    if facts.labelled_samples < minimum_samples:
        return f"{facts.labelled_samples} labelled samples, fewer than {minimum_samples}"
    if facts.flower_node_id in ("", "0"):
        return "its training process has not joined the SuperLink"
    return ""


def judge(settings: CampaignSettings, states: Mapping[str, str], *, waited_ms: int) -> Verdict:
    """Whether the first round begins.

    Args:
        settings: Of the campaign.
        states: Invited device to "invited", "accepted" or "declined".
        waited_ms: How long the campaign has been recruiting.

    Returns:
        "start" when enough accepted and nobody's answer is missing, or at the deadline when enough accepted; "fail" at
        the deadline when not; else "wait".
    """
    accepted = sum(state == "accepted" for state in states.values())
    unanswered = sum(state == "invited" for state in states.values())
    enough = accepted >= settings.minimum_devices
    if enough and not unanswered:
        return "start"
    if waited_ms < settings.recruiting_deadline_ms:
        return "wait"
    return "start" if enough else "fail"


def shortage(settings: CampaignSettings, states: Mapping[str, str], left_out: Mapping[str, str]) -> str:
    """Why recruiting failed, for people."""
    accepted = sum(state == "accepted" for state in states.values())
    reasons = [f"{device}: {reason}" for device, reason in sorted(left_out.items())]
    reasons += [f"{device}: {state}" for device, state in sorted(states.items()) if state != "accepted"]
    listed = "; ".join(reasons[:5]) + ("; ..." if len(reasons) > 5 else "")
    return f"{accepted} of at least {settings.minimum_devices} devices accepted" + (f" ({listed})" if listed else "")
