"""Moves rollouts: reads what devices report, decides with ``planning``, writes what is wanted.

One transaction per rollout and step. The controller keeps nothing in memory, so one that is killed anywhere is
replaced by a new one that goes on from the rows.

The order of a device's instruction and its rows is safe because they are written together: ``desired_*`` with
``desired_sequence + 1`` in the same commit as the row "instructed". The publisher of the desired state does the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.fleet.service import set_desired
from skerry_server.rollouts import planning, rollout_machine
from skerry_server.rollouts.planning import DeviceView, Gate, GateLimits
from skerry_server.store.tables import Device, Release, Rollout, RolloutDevice

_LOG = logging.getLogger(__name__)
_ACTOR = "rollout-controller"


class Promote(Protocol):
    """Writes down that a release is champion of a task now; see ``registry.champions.promote``."""

    def __call__(self, session: Session, *, task: str, release_id: str, reason: str) -> object:
        """Append to the ledger of champions."""


def _promote(session: Session, *, task: str, release_id: str, reason: str) -> object:
    from skerry_server.registry import champions

    return champions.promote(session, task=task, release_id=release_id, reason=reason)


class RolloutController:
    """Reconciler of the rollouts; see ``rollout_machine`` for the states."""

    name = "rollouts"
    period_s = 0.5

    def __init__(
        self,
        context: ServerContext,
        *,
        limits: GateLimits = GateLimits(),  # noqa: B008 - frozen
        promote: Promote = _promote,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        """Create the controller.

        Args:
            context: Store to work on.
            limits: Limits of the health gate.
            promote: Called in the transaction that finishes a rollout.
            clock: Milliseconds since 1970.
        """
        self._database = context.database
        self._limits = limits
        self._promote = promote
        self._clock = clock

    def step(self) -> None:
        """Take one step with every rollout that has not ended, then follow devices that finished ones left behind."""
        with self._database.reading() as session:
            active = list(
                session.scalars(
                    sa.select(Rollout.id)
                    .where(Rollout.state.in_(rollout_machine.ACTIVE))
                    .order_by(Rollout.created_ms, Rollout.id)
                )
            )
        for rollout_id in active:
            with self._database.transaction() as session:
                rollout = session.get_one(Rollout, rollout_id)
                step = {
                    "pending": self._begin,
                    "canary": self._watch_stage,
                    "fleet": self._watch_stage,
                    "rolling_back": self._roll_back,
                }.get(rollout.state)
                if step is not None:
                    step(session, rollout)
        with self._database.transaction() as session:
            self._follow_stragglers(session)

    def _begin(self, session: Session, rollout: Rollout) -> None:
        """Choose the canaries once somebody is online, and instruct them."""
        pairs = _pairs(session, rollout)
        for row, device in pairs:
            if row.state == "pending" and _runs(device, rollout):
                _settle(row, "healthy", "ran the release before the rollout")
        waiting = [(row, device) for row, device in pairs if row.state == "pending"]
        if waiting and not any(device.online for _, device in waiting):
            if self._expired(rollout):
                self._move(session, rollout, "timed_out", "no device of the cohort came online before the deadline")
            else:
                self._say(rollout, f"waits for {rollout_machine.WAITS_FOR['pending']}")
            return
        canaries = planning.plan_canaries(
            [(device.id, device.online) for _, device in waiting], percent=rollout.canary_percent, salt=rollout.id
        )
        for row, device in waiting:
            if device.id in canaries:
                row.stage = "canary"
                self._instruct(session, row, device, rollout)
        self._move(session, rollout, "instructed", f"{len(canaries)} canary devices instructed", canaries=canaries)

    def _watch_stage(self, session: Session, rollout: Rollout) -> None:
        """Assess the instructed devices and ask the gate."""
        release = session.get_one(Release, rollout.release_id)
        if release.state != "available":
            self._move(session, rollout, "gate_failed", f"release {release.id} is {release.state}")
            return
        pairs = _pairs(session, rollout)
        if rollout.state == "fleet":
            for row, device in pairs:
                if row.state == "pending":
                    self._instruct(session, row, device, rollout)
        self._assess(rollout, pairs)
        # The gate of the fleet stage counts everybody, so that a canary that fails late counts too.
        judged = [pair for pair in pairs if rollout.state == "fleet" or pair[0].stage == "canary"]
        decision = planning.decide_stage(
            rollout.state,
            [_view(row, device) for row, device in judged],
            now_ms=self._clock(),
            started_ms=rollout.stage_started_ms,
            deadline_ms=rollout.stage_deadline_ms,
            limits=self._limits,
        )
        if decision.gate is Gate.WAIT:
            self._say(rollout, decision.detail)
            return
        if self._expired(rollout):
            for row, device in judged:
                if row.state == "instructed" and device.online:
                    _settle(row, "failed", "online, but silent until the deadline of the stage")
        if decision.gate is Gate.FAIL:
            self._move(session, rollout, "gate_failed", decision.detail)
            return
        finishes = rollout.state == "fleet"
        self._move(session, rollout, "gate_passed", decision.detail)
        if finishes:
            self._promote(
                session, task=rollout.task, release_id=rollout.release_id, reason=f"rollout {rollout.id} finished"
            )

    def _roll_back(self, session: Session, rollout: Rollout) -> None:
        """Tell every instructed device to return, then wait until they have."""
        pairs = _pairs(session, rollout)
        open_pairs = [(row, device) for row, device in pairs if row.state in ("instructed", "healthy", "failed")]
        remaining = []
        for row, device in open_pairs:
            if row.instructed_ms == 0:
                continue  # ran the release before the rollout: not ours to take away
            if device.desired_rollout == rollout.id and device.desired_release == rollout.release_id:
                set_desired(session, device.id, release_id=row.previous_release, rollout_id=rollout.id)
            if device.desired_rollout != rollout.id:
                _settle(row, "restored", f"taken over by rollout {device.desired_rollout}")
            elif planning.is_restored(_view(row, device), release_id=rollout.release_id):
                _settle(row, "restored", _restored_detail(row, rollout))
            else:
                row.detail = f"told to return to {row.previous_release}"
                remaining.append(_view(row, device))
        decision = planning.decide_restored(
            remaining,
            now_ms=self._clock(),
            started_ms=rollout.stage_started_ms,
            deadline_ms=rollout.stage_deadline_ms,
            limits=self._limits,
        )
        if decision.gate is Gate.ADVANCE:
            self._move(session, rollout, "restored", f"{rollout.detail.partition(' · ')[0]} · {decision.detail}")
        else:
            self._say(rollout, f"{rollout.detail.partition(' · ')[0]} · {decision.detail}")

    def _follow_stragglers(self, session: Session) -> None:
        """Devices that a finished rollout left behind take the release when they return; their rows follow them."""
        rows = session.execute(
            sa.select(RolloutDevice, Device, Rollout)
            .join(Device, Device.id == RolloutDevice.device_id)
            .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
            .where(
                Rollout.state == "finished",
                RolloutDevice.state.in_(("instructed", "failed")),
                Device.desired_rollout == Rollout.id,
            )
        )
        for row, device, rollout in rows:
            self._assess(rollout, [(row, device)])

    def _assess(self, rollout: Rollout, pairs: Sequence[tuple[RolloutDevice, Device]]) -> None:
        for row, device in pairs:
            if row.state not in ("instructed", "healthy", "failed") or row.instructed_ms == 0:
                continue
            result = planning.assess(
                _view(row, device), release_id=rollout.release_id, rollout_id=rollout.id, limits=self._limits
            )
            if result.state != row.state:
                _settle(row, result.state, result.detail)
            elif result.detail and row.detail != result.detail:
                row.detail = result.detail

    def _instruct(self, session: Session, row: RolloutDevice, device: Device, rollout: Rollout) -> None:
        if _runs(device, rollout):
            _settle(row, "healthy", "ran the release before the rollout")
            return
        row.previous_release = device.desired_release or device.active_release
        row.instructed_ms = self._clock()
        _settle(row, "instructed", "instructed")
        set_desired(
            session,
            device.id,
            release_id=rollout.release_id,
            rollout_id=rollout.id,
            probation_ms=rollout.probation_ms,
        )

    def _move(self, session: Session, rollout: Rollout, event: str, detail: str, **more: Any) -> None:
        before = rollout.state
        rollout.state = rollout_machine.next_state(before, event)
        rollout.detail = detail
        rollout.stage_started_ms = rollout.updated_ms = self._clock()
        ledger.append(
            session,
            actor=_ACTOR,
            action=f"rollout.{event}",
            subject=rollout.id,
            detail={"from": before, "to": rollout.state, "detail": detail, **more},
        )
        _LOG.info("rollout %s: %s -> %s: %s", rollout.id, before, rollout.state, detail)

    def _say(self, rollout: Rollout, detail: str) -> None:
        if rollout.detail != detail:
            rollout.detail = detail
            rollout.updated_ms = self._clock()

    def _expired(self, rollout: Rollout) -> bool:
        return self._clock() >= rollout.stage_started_ms + rollout.stage_deadline_ms


def _pairs(session: Session, rollout: Rollout) -> list[tuple[RolloutDevice, Device]]:
    rows = session.execute(
        sa.select(RolloutDevice, Device)
        .join(Device, Device.id == RolloutDevice.device_id)
        .where(RolloutDevice.rollout_id == rollout.id)
        .order_by(RolloutDevice.device_id)
    )
    return [(row, device) for row, device in rows]


def _view(row: RolloutDevice, device: Device) -> DeviceView:
    health = device.health or {}
    return DeviceView(
        device_id=device.id,
        state=row.state,
        online=device.online,
        last_seen_ms=device.last_seen_ms,
        instructed_ms=row.instructed_ms,
        previous_release=row.previous_release,
        active_release=device.active_release,
        update_status=device.update_status,
        update_detail=device.update_detail,
        reported_rollout=device.reported_rollout,
        health_release=str(health.get("release_id", "")),
        requests=int(health.get("requests", 0)),
        errors=int(health.get("errors", 0)),
        detail=row.detail,
    )


def _runs(device: Device, rollout: Rollout) -> bool:
    """Whether the device serves the release for good, and nothing else is wanted of it."""
    return (
        device.active_release == rollout.release_id
        and device.desired_release in ("", rollout.release_id)
        and device.update_status not in planning.MOVING
    )


def _settle(row: RolloutDevice, state: str, detail: str) -> None:
    row.state = rollout_machine.check_device_transition(row.state, state)
    row.detail = detail


def _restored_detail(row: RolloutDevice, rollout: Rollout) -> str:
    if not row.previous_release or row.previous_release == rollout.release_id:
        return "keeps the release: it ran no other before"
    return f"back on {row.previous_release}"
