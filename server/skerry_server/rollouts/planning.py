"""Decisions of a rollout: who is canary, how a device is doing, what its stage does next. Pure.

Devices that are offline are instructed like the others, because the desired state waits for them at the broker. They
never hold a rollout for ever:

* in the *canary* stage they are waited for until the stage's deadline, for the canary is the evidence. Then one
  healthy canary and no failed one is enough; without a healthy one the rollout rolls back;
* in the *fleet* stage a device that has been away for :attr:`GateLimits.offline_grace_ms` is left as instructed: it
  takes the release when it returns, and its row follows it then.

An online device that is silent until the deadline counts as failed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Update states in which a device is on its way from one release to another.
MOVING = frozenset({"downloading", "verifying", "staging", "proving", "activating", "probation"})
#: Update states that say that the device refused the release.
REFUSED = frozenset({"rolled_back", "quarantined"})


@dataclass(frozen=True)
class GateLimits:
    """When a stage is good enough.

    Attributes:
        canary_failed: Most failed canaries; any more roll back.
        fleet_failed_fraction: Largest fraction of the fleet stage that may fail.
        error_rate: Largest fraction of requests that a device may answer with an error.
        error_requests: Requests below which the error rate of a device is not judged.
        offline_grace_ms: For how long the fleet stage waits for a device that is offline (milliseconds).
    """

    canary_failed: int = 0
    fleet_failed_fraction: float = 0.2
    error_rate: float = 0.05
    error_requests: int = 20
    offline_grace_ms: int = 30_000


@dataclass(frozen=True)
class DeviceView:
    """What the store knows of one device of a rollout.

    Attributes:
        device_id: Which one.
        state: Its state in the rollout, see ``rollout_machine.DEVICE_TRANSITIONS``.
        online: Whether it has presence.
        last_seen_ms: When it was heard last.
        instructed_ms: When it was told; 0 before.
        previous_release: What it is to return to; empty if it ran nothing before.
        active_release: What it serves, by its last report.
        update_status: Lower-case update status of its last report.
        update_detail: Its explanation.
        reported_rollout: The rollout that its last report answers.
        health_release: Release of its last health report.
        requests: Requests in that report.
        errors: Errors in that report.
        detail: Why its row is in its state.
    """

    device_id: str
    state: str
    online: bool
    last_seen_ms: int
    instructed_ms: int
    previous_release: str
    active_release: str
    update_status: str
    update_detail: str = ""
    reported_rollout: str = ""
    health_release: str = ""
    requests: int = 0
    errors: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Assessment:
    """How one device is doing: its next state in the rollout, and why."""

    device_id: str
    state: str
    detail: str


class Gate(StrEnum):
    """What a stage does next."""

    WAIT = "wait"
    ADVANCE = "advance"
    FAIL = "fail"


@dataclass(frozen=True)
class GateDecision:
    """A gate's answer with its reason, for people."""

    gate: Gate
    detail: str


def plan_canaries(devices: Sequence[tuple[str, bool]], *, percent: int, salt: str) -> list[str]:
    """Choose the canary devices.

    Args:
        devices: (device id, online) of every device that does not run the release yet.
        percent: 1 to 100, share of them; rounded up, so at least one.
        salt: The rollout's id. Mixed into the order, so that not always the same devices are canary.

    Returns:
        Device ids, online ones first, then in the order of SHA-256(salt, id): the same input gives the same answer.
        Empty only when ``devices`` is.
    """
    count = math.ceil(len(devices) * percent / 100)
    order = sorted(devices, key=lambda device: (not device[1], hashlib.sha256(f"{salt}/{device[0]}".encode()).digest()))
    return [device_id for device_id, _ in order[:count]]


def assess(view: DeviceView, *, release_id: str, rollout_id: str, limits: GateLimits) -> Assessment:
    """How an instructed device is doing with ``release_id``.

    Healthy: it serves the release, says "committed" for this rollout, and its last health report under the release
    has no excess of errors. Failed: it rolled back or quarantined the release, or has such an excess. Otherwise it
    stays instructed; the detail says what it is doing.
    """
    answers = view.reported_rollout == rollout_id
    if answers and view.update_status in REFUSED:
        return Assessment(view.device_id, "failed", f"{view.update_status}: {view.update_detail or 'no reason given'}")
    if view.health_release == release_id and view.requests >= limits.error_requests:
        rate = view.errors / view.requests
        if rate > limits.error_rate:
            detail = f"{view.errors} of {view.requests} requests failed ({rate:.1%}, limit {limits.error_rate:.1%})"
            return Assessment(view.device_id, "failed", detail)
    if answers and view.active_release == release_id and view.update_status == "committed":
        return Assessment(view.device_id, "healthy", "committed")
    if view.state == "healthy" and answers and view.active_release != release_id:
        return Assessment(view.device_id, "failed", f"went back to {view.active_release or 'no release'} by itself")
    if view.state in ("healthy", "failed"):
        return Assessment(view.device_id, view.state, "")
    if not view.online:
        return Assessment(view.device_id, "instructed", "offline: takes the release when it returns")
    if not answers:
        return Assessment(view.device_id, "instructed", "has not answered the instruction yet")
    return Assessment(view.device_id, "instructed", f"{view.update_status} {view.update_detail}".strip())


def decide_stage(
    stage: str, views: Sequence[DeviceView], *, now_ms: int, started_ms: int, deadline_ms: int, limits: GateLimits
) -> GateDecision:
    """Whether a stage is done.

    Args:
        stage: "canary" or "fleet".
        views: Devices of that stage, assessed: states instructed, healthy or failed.
        now_ms: The time.
        started_ms: When the stage began.
        deadline_ms: Length of the stage.
        limits: The gate's limits.

    Returns:
        ADVANCE, FAIL or WAIT with its reason. A stage without devices advances.
    """
    healthy = sum(view.state == "healthy" for view in views)
    failed = [view.device_id for view in views if view.state == "failed"]
    expired = now_ms >= started_ms + deadline_ms
    silent = [view.device_id for view in views if view.state == "instructed" and view.online]
    away = [view for view in views if view.state == "instructed" and not view.online]
    if expired:
        failed += silent
        silent = []
    allowed = limits.canary_failed if stage == "canary" else math.floor(limits.fleet_failed_fraction * len(views))
    if len(failed) > allowed:
        first = next((view for view in views if view.device_id in failed and view.detail), None)
        why = f" ({first.device_id}: {first.detail})" if first else ""
        reason = f"{len(failed)} of {len(views)} {stage} devices failed, allowed {allowed}: {_names(failed)}{why}"
        return GateDecision(Gate.FAIL, reason)
    if silent:
        return GateDecision(Gate.WAIT, f"{healthy} of {len(views)} healthy; waits for {_names(silent)}")
    if stage == "canary":
        if away and not expired:
            names = _names([view.device_id for view in away])
            return GateDecision(Gate.WAIT, f"{healthy} of {len(views)} healthy; waits for {names} to come online")
        if views and not healthy:
            return GateDecision(Gate.FAIL, f"none of {len(views)} canary devices was healthy before the deadline")
    else:
        fresh = [view for view in away if not expired and _absent_ms(view, now_ms) < limits.offline_grace_ms]
        if fresh:
            names = _names([view.device_id for view in fresh])
            return GateDecision(Gate.WAIT, f"{healthy} of {len(views)} healthy; waits a little for {names} (offline)")
    left = f"; left as instructed: {_names([view.device_id for view in away])} (offline)" if away else ""
    lost = f"; failed: {_names(failed)}" if failed else ""
    return GateDecision(Gate.ADVANCE, f"{healthy} of {len(views)} {stage} devices healthy{lost}{left}")


def is_restored(view: DeviceView, *, release_id: str) -> bool:
    """Whether a device that is being rolled back no longer needs attention.

    It is back when it serves what it served before and is not on its way elsewhere. A device that ran nothing before
    keeps the release, because an unwanted release is better than none; there is nothing to wait for.
    """
    if not view.previous_release or view.previous_release == release_id:
        return True
    return view.active_release == view.previous_release and view.update_status not in MOVING


def decide_restored(
    views: Sequence[DeviceView], *, now_ms: int, started_ms: int, deadline_ms: int, limits: GateLimits
) -> GateDecision:
    """Whether a rollback is done: ADVANCE or WAIT; ``views`` are the devices that are not restored yet."""
    if not views:
        return GateDecision(Gate.ADVANCE, "every instructed device is back")
    expired = now_ms >= started_ms + deadline_ms
    holding = [
        view.device_id
        for view in views
        if not expired and (view.online or now_ms - max(view.last_seen_ms, started_ms) < limits.offline_grace_ms)
    ]
    if holding:
        return GateDecision(Gate.WAIT, f"waits for {_names(holding)} to return to the previous release")
    names = _names([view.device_id for view in views])
    return GateDecision(Gate.ADVANCE, f"not back yet, told to return: {names}")


def _absent_ms(view: DeviceView, now_ms: int) -> int:
    return now_ms - max(view.last_seen_ms, view.instructed_ms)


def _names(device_ids: Sequence[str]) -> str:
    shown = ", ".join(sorted(device_ids)[:5])
    return shown if len(device_ids) <= 5 else f"{shown} and {len(device_ids) - 5} more"
