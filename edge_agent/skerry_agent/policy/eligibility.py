"""Whether this device takes part in a campaign, decided from what it measured. Pure.

The device has the last word: heat, battery and slow answers keep it out whatever the control plane wants.
"""

from __future__ import annotations

from dataclasses import dataclass

from skerry_contract.v1.telemetry_pb2 import CampaignInvitation


@dataclass(frozen=True)
class Limits:
    """Bounds of this device.

    Attributes:
        temperature_c: Hottest zone above which it stays out.
        battery_percent: Charge below which it stays out unless it is charging.
        p99_ms: 99th percentile of the answers above which it stays out.
    """

    temperature_c: float
    battery_percent: float
    p99_ms: float


@dataclass(frozen=True)
class Conditions:
    """What was measured.

    Attributes:
        temperature_c: Hottest thermal zone; None if the device has none.
        battery_percent: Lowest battery; None if the device has none.
        charging: Whether it is charged or runs from the mains.
        p99_us: 99th percentile of the answers; 0 if there were none.
        release_id: Release that answers; empty if none does.
        task: Task of that release.
        train_step_sha256: Digest of its training step; empty if it has none.
        labelled_samples: Samples that can be trained on.
        flower_node_id: Node of the training process; 0 while there is none.
        updating: Whether an update is under way.
    """

    temperature_c: float | None
    battery_percent: float | None
    charging: bool
    p99_us: int
    release_id: str
    task: str
    train_step_sha256: bytes
    labelled_samples: int
    flower_node_id: int
    updating: bool


@dataclass(frozen=True)
class Obstacle:
    """Why a device stays out.

    Attributes:
        reason: For people.
        passes: Whether it may pass by itself within seconds.
    """

    reason: str
    passes: bool


def strain(conditions: Conditions, limits: Limits) -> str:
    """Why training must pause at once, whatever it is in the middle of; empty if it need not."""
    heat, charge, p99_ms = conditions.temperature_c, conditions.battery_percent, conditions.p99_us / 1000
    if heat is not None and heat > limits.temperature_c:
        return f"too hot: {heat:.0f} °C, limit {limits.temperature_c:.0f} °C"
    if charge is not None and not conditions.charging and charge < limits.battery_percent:
        return f"battery low: {charge:.0f} %, limit {limits.battery_percent:.0f} %"
    if p99_ms > limits.p99_ms:
        return f"answers are slow: p99 {p99_ms:.1f} ms, limit {limits.p99_ms:.1f} ms"
    return ""


def device_obstacle(conditions: Conditions, limits: Limits) -> Obstacle | None:
    """Why the device would stay out of any campaign now; None if it would not."""
    reason = strain(conditions, limits)
    if reason:
        return Obstacle(reason, passes=False)
    if not conditions.release_id:
        return Obstacle("no release answers", passes=True)
    if conditions.updating:
        return Obstacle("an update is under way", passes=True)
    if conditions.flower_node_id == 0:
        return Obstacle("the training process has no Flower node yet", passes=True)
    return None


def invitation_obstacle(
    invitation: CampaignInvitation, conditions: Conditions, limits: Limits, *, now_ms: int
) -> Obstacle | None:
    """Why the device declines an invitation; None if it accepts.

    Args:
        invitation: From the control plane.
        conditions: What was measured.
        limits: Of this device.
        now_ms: Wall clock (Unix ms).
    """
    if invitation.expires_unix_ms and now_ms > invitation.expires_unix_ms:
        return Obstacle("the invitation has expired", passes=False)
    if conditions.labelled_samples < invitation.minimum_samples:
        return Obstacle(
            f"{conditions.labelled_samples} labelled samples, {invitation.minimum_samples} are needed", passes=False
        )
    obstacle = device_obstacle(conditions, limits)
    if obstacle is not None:
        return obstacle
    if conditions.task != invitation.task:
        return Obstacle(f"the device does {conditions.task}, not {invitation.task}", passes=False)
    if conditions.release_id != invitation.release_id:
        return Obstacle(f"release {conditions.release_id} answers, not {invitation.release_id}", passes=True)
    if conditions.train_step_sha256 != invitation.train_step_sha256:
        return Obstacle("the release has another training step", passes=False)
    return None
