"""The guard rails of the closed loop. Pure: each rule is a line of a table that tests read.

They exist because the loop acts on what devices say. A device that lies may open an incident; it must not make the
fleet train. A fault of a sensor must not be learned. A cure that does not work must not be repeated for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skerry_server.incidents import incident_machine
from skerry_server.incidents.policy_settings import PolicySettings

#: Severities from weak to strong.
SEVERITIES = ("none", "info", "warn", "act", "critical")
#: Kinds of incident that a campaign may cure.
TRAINABLE = frozenset({"drift"})


@dataclass(frozen=True)
class Refusal:
    """A guard that holds an incident back.

    Attributes:
        guard: Name of the rule.
        detail: What is missing, for people.
    """

    guard: str
    detail: str


@dataclass(frozen=True)
class Situation:
    """What the guards look at.

    Attributes:
        kind: Kind of the incident.
        severity: Its severity.
        devices: Devices that it affects.
        labels: Labels that each affected device has joined since it changed, by device id.
        now_ms: The time.
        last_attempt_ms: When the last campaign of the task because of an incident began; 0 for never.
        in_flight: Other incident, campaign or rollout of the task that is under way; empty for none.
        approved_by_person: Whether a person approved.
        policy_enabled: Whether a named policy of the task is enabled.
        breaker: Incident of the task whose breaker is open; empty for none.
    """

    kind: str
    severity: str
    devices: int
    labels: Mapping[str, int]
    now_ms: int
    last_attempt_ms: int = 0
    in_flight: str = ""
    approved_by_person: bool = False
    policy_enabled: bool = False
    breaker: str = ""


def check_trainable(situation: Situation) -> list[Refusal]:
    """Never retrain because of anything but drift."""
    if situation.kind in TRAINABLE:
        return []
    return [Refusal("kind", f"a {situation.kind} incident is never cured by training")]


def check_evidence(situation: Situation, settings: PolicySettings) -> list[Refusal]:
    """Whether an incident may be confirmed: enough severity, and more than one device's word."""
    refusals = check_trainable(situation)
    if SEVERITIES.index(situation.severity) < SEVERITIES.index(settings.minimum_severity):
        refusals.append(
            Refusal("severity", f"severity is {situation.severity}, {settings.minimum_severity} is needed to act")
        )
    if situation.devices < settings.minimum_devices:
        refusals.append(
            Refusal("devices", f"{situation.devices} of {settings.minimum_devices} needed devices are affected")
        )
    return refusals


def check_approval(situation: Situation) -> list[Refusal]:
    """Whether a proposal may go on without a person: only under a named policy that is enabled."""
    refusals = check_trainable(situation)
    if not situation.policy_enabled and not situation.approved_by_person:
        refusals.append(Refusal("approval", "waits for a person: no automatic policy of the task is enabled"))
    if situation.breaker and not situation.approved_by_person:
        refusals.append(Refusal("breaker", f"waits for a person: the breaker is open since {situation.breaker}"))
    return refusals


def check_start(situation: Situation, settings: PolicySettings) -> list[Refusal]:
    """Whether an approved campaign may start now."""
    refusals = check_trainable(situation) + check_approval(situation)
    ready = sum(count >= settings.minimum_labels for count in situation.labels.values())
    needed = min(settings.minimum_labelled_devices, max(1, situation.devices))
    if ready < needed:
        most = max(situation.labels.values(), default=0)
        refusals.append(
            Refusal(
                "labels",
                f"{ready} of {needed} needed devices have {settings.minimum_labels} new labels (most: {most})",
            )
        )
    elapsed = situation.now_ms - situation.last_attempt_ms
    if situation.last_attempt_ms and elapsed < settings.cooldown_ms:
        refusals.append(Refusal("cooldown", f"cool-down of {(settings.cooldown_ms - elapsed + 999) // 1000} s"))
    if situation.in_flight:
        refusals.append(Refusal("one in flight", f"{situation.in_flight} of this task is under way"))
    return refusals


def may_reopen(*, state: str, device_known: bool, updated_ms: int, now_ms: int, quiet_ms: int) -> bool:
    """Whether new evidence opens a new incident although one for the same release and kind has ended.

    A device that was part of it does not, until ``quiet_ms`` have passed: its drift is what was decided about. A
    device that is new does.
    """
    if state not in incident_machine.FINAL:
        raise ValueError(f"an incident in state {state} has not ended")
    return not device_known or now_ms - updated_ms >= quiet_ms
