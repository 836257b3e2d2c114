"""Whether this device takes part in a campaign, decided from what it measured. Pure.

The device has the last word: heat, battery, slow answers and a network that is paid by the byte keep it out whatever
the control plane wants. Every obstacle has a code of :data:`skerry_contract.campaign.STAY_OUT`, so that reasons can be
counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from skerry_contract.v1.telemetry_pb2 import CampaignInvitation, DeviceConditions

#: How far back a figure must go before a pause ends: degrees, percent, share of the p99 limit. A device that warms up
#: by training would otherwise go on and off every second.
COOLER_C = 3.0
FULLER_PERCENT = 2.0
FASTER = 0.8


@dataclass(frozen=True)
class Limits:
    """Bounds of this device.

    Attributes:
        temperature_c: Hottest zone above which it stays out.
        battery_percent: Charge below which it stays out unless it is charging.
        p99_ms: 99th percentile of the answers above which it stays out.
        on_metered: Whether it takes part over a network that is paid by the byte.
        only_idle: Whether it stays out while it answers requests.
    """

    temperature_c: float
    battery_percent: float
    p99_ms: float
    on_metered: bool = True
    only_idle: bool = False

    def eased(self) -> Limits:
        """What must hold again before training that was paused goes on."""
        return replace(
            self,
            temperature_c=self.temperature_c - COOLER_C,
            battery_percent=min(100.0, self.battery_percent + FULLER_PERCENT),
            p99_ms=self.p99_ms * FASTER,
        )


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
        metered: Whether the network is paid by the byte.
        idle: Whether no request was answered for a while; None while serving does not say.
        fresh_samples: Samples that came since the last accepted update; None if they cannot be counted.
        utc_offset_minutes: Of the local time, east.
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
    metered: bool = False
    idle: bool | None = None
    fresh_samples: int | None = None
    utc_offset_minutes: int = 0

    def message(self) -> DeviceConditions:
        """For the control plane; what was not measured is left out.

        A device without a battery runs from the mains.
        """
        message = DeviceConditions(
            idle=self.idle,
            charging=self.charging or self.battery_percent is None,
            battery_percent=None if self.battery_percent is None else min(100.0, max(0.0, self.battery_percent)),
            metered=self.metered,
            temperature_c=self.temperature_c,
            fresh_samples=self.fresh_samples,
            utc_offset_minutes=self.utc_offset_minutes,
        )
        if self.p99_us:
            message.latency_p99_us = self.p99_us
        return message


@dataclass(frozen=True)
class Obstacle:
    """Why a device stays out.

    Attributes:
        reason: For people.
        passes: Whether it may pass by itself within seconds.
        code: One of :data:`skerry_contract.campaign.STAY_OUT`.
    """

    reason: str
    passes: bool
    code: str


def strain_obstacle(conditions: Conditions, limits: Limits) -> Obstacle | None:
    """Why training must pause at once, whatever it is in the middle of; None if it need not."""
    heat, charge, p99_ms = conditions.temperature_c, conditions.battery_percent, conditions.p99_us / 1000
    if heat is not None and heat > limits.temperature_c:
        return Obstacle(f"too hot: {heat:.0f} °C, limit {limits.temperature_c:.0f} °C", passes=False, code="hot")
    if charge is not None and not conditions.charging and charge < limits.battery_percent:
        return Obstacle(
            f"battery low: {charge:.0f} %, limit {limits.battery_percent:.0f} %", passes=False, code="battery"
        )
    if p99_ms > limits.p99_ms:
        return Obstacle(
            f"answers are slow: p99 {p99_ms:.1f} ms, limit {limits.p99_ms:.1f} ms", passes=False, code="slow-answers"
        )
    if conditions.metered and not limits.on_metered:
        return Obstacle("the network is metered (training_on_metered is false)", passes=False, code="metered")
    if limits.only_idle and conditions.idle is False:
        return Obstacle("requests are being answered (training_only_idle is true)", passes=True, code="busy")
    return None


def strain(conditions: Conditions, limits: Limits) -> str:
    """The reason of :func:`strain_obstacle`; empty if there is none."""
    obstacle = strain_obstacle(conditions, limits)
    return "" if obstacle is None else obstacle.reason


def device_obstacle(conditions: Conditions, limits: Limits) -> Obstacle | None:
    """Why the device would stay out of any campaign now; None if it would not."""
    obstacle = strain_obstacle(conditions, limits)
    if obstacle is not None:
        return obstacle
    if not conditions.release_id:
        return Obstacle("no release answers", passes=True, code="no-release")
    if conditions.updating:
        return Obstacle("an update is under way", passes=True, code="updating")
    if conditions.flower_node_id == 0:
        return Obstacle("the training process has no Flower node yet", passes=True, code="no-node")
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
        return Obstacle("the invitation has expired", passes=False, code="expired")
    if conditions.labelled_samples < invitation.minimum_samples:
        return Obstacle(
            f"{conditions.labelled_samples} labelled samples, {invitation.minimum_samples} are needed",
            passes=False,
            code="few-samples",
        )
    obstacle = device_obstacle(conditions, limits)
    if obstacle is not None:
        return obstacle
    if conditions.task != invitation.task:
        return Obstacle(f"the device does {conditions.task}, not {invitation.task}", passes=False, code="other-task")
    if conditions.release_id != invitation.release_id:
        return Obstacle(
            f"release {conditions.release_id} answers, not {invitation.release_id}", passes=True, code="other-release"
        )
    if conditions.train_step_sha256 != invitation.train_step_sha256:
        return Obstacle("the release has another training step", passes=False, code="other-step")
    return None
