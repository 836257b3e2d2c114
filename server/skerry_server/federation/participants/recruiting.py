"""Whom a campaign invites and when it begins. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skerry_server.federation.participants.eligibility import (
    EXCLUSIONS,
    Conditions,
    EligibilityRules,
    Exclusion,
    judge_conditions,
)
from skerry_server.federation.participants.time_windows import MINUTE_MS
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
        ineligible_code: A word of :data:`EXCLUSIONS` for the reason; empty when the device gives none.
        release_id: Its active release; empty without one.
        last_participation_ms: When its newest update that counted came, in any campaign; 0: never.
        conditions: What it told last.
    """

    device_id: str
    online: bool
    flower_node_id: str
    labelled_samples: int
    task: str
    train_step_sha256: str
    ineligible_reason: str
    quarantined: bool
    ineligible_code: str = ""
    release_id: str = ""
    last_participation_ms: int = 0
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True)
class Wanted:
    """What a campaign asks of a device.

    Attributes:
        task: What is learned.
        train_step_sha256: Digest (hexadecimal) of the training step of the base release.
        minimum_samples: Labelled samples.
        release_id: The base release, which a device must run that takes part; empty: any with that training step.
        rest_minutes: How long after its last update a device is left in peace; 0: not at all.
        rules: Conditions.
    """

    task: str
    train_step_sha256: str
    minimum_samples: int
    release_id: str = ""
    rest_minutes: float = 0.0
    rules: EligibilityRules = field(default_factory=EligibilityRules)


def exclusion(facts: DeviceFacts, wanted: Wanted, *, at_ms: int) -> Exclusion | None:
    """Why a device is not invited at a moment; None when it is."""
    if not facts.online:
        return Exclusion("offline", "offline")
    if facts.ineligible_reason:
        code = facts.ineligible_code if facts.ineligible_code in EXCLUSIONS else "device"
        return Exclusion(code, facts.ineligible_reason)
    if facts.quarantined:
        return Exclusion("quarantined", "quarantined: an incident about the quality of its data is open")
    if not facts.task:
        return Exclusion("no-release", f"runs no task, not {wanted.task}")
    if facts.task != wanted.task:
        return Exclusion("other-task", f"runs {facts.task}, not {wanted.task}")
    if facts.train_step_sha256 != wanted.train_step_sha256:
        return Exclusion("other-step", "runs a release with another network")
    if wanted.release_id and facts.release_id != wanted.release_id:
        return Exclusion("other-release", f"runs {facts.release_id or 'no release'}, not {wanted.release_id}")
    if facts.labelled_samples < wanted.minimum_samples:
        return Exclusion(
            "few-samples", f"{facts.labelled_samples} labelled samples, fewer than {wanted.minimum_samples}"
        )
    if facts.flower_node_id in ("", "0"):
        return Exclusion("no-node", "its training process has not joined the SuperLink")
    rested_ms = at_ms - facts.last_participation_ms
    if facts.last_participation_ms and rested_ms < wanted.rest_minutes * MINUTE_MS:
        rested = f"{max(0, rested_ms) / MINUTE_MS:.0f} min"
        return Exclusion("resting", f"its last update is {rested} old, {wanted.rest_minutes:g} min wanted")
    return judge_conditions(wanted.rules, facts.conditions, at_ms=at_ms)


def judge(settings: CampaignSettings, states: Mapping[str, str], *, waited_ms: int) -> Verdict:
    """Whether the first round begins.

    Args:
        settings: Of the campaign.
        states: Invited device to "invited", "accepted" or "declined"; devices that are left out ("excluded") do not
            matter.
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
    reasons += [f"{device}: {state}" for device, state in sorted(states.items()) if state in ("invited", "declined")]
    listed = "; ".join(reasons[:5]) + ("; ..." if len(reasons) > 5 else "")
    return f"{accepted} of at least {settings.minimum_devices} devices accepted" + (f" ({listed})" if listed else "")
