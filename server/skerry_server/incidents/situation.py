"""What the store says about an incident's surroundings. Reads only; the decisions are in ``guards``."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.federation import campaign_machine
from skerry_server.incidents import incident_machine
from skerry_server.incidents.guards import Situation
from skerry_server.incidents.policies import get_policy, policy_for
from skerry_server.incidents.policy_settings import PolicySettings, parse_settings
from skerry_server.rollouts import rollout_machine
from skerry_server.store.tables import Campaign, Device, DriftWindow, Incident, LabelRow, Policy, Rollout

#: Newest windows of a device that must be quiet for its part of an incident to have subsided.
QUIET_WINDOWS = 3
#: Statuses that are no sign of the kind of incident any more.
_QUIET = {"drift": frozenset({"ok"}), "data-quality": frozenset({"ok", "suspect", "drift", "baseline"})}


def effective_policy(session: Session, incident: Incident) -> tuple[Policy | None, PolicySettings]:
    """The policy that an incident is treated by, and its settings; the defaults where the task has none."""
    policy = get_policy(session, incident.policy) if incident.policy else policy_for(session, incident.task)
    return policy, parse_settings(policy.settings) if policy is not None else PolicySettings()


def situation_of(session: Session, incident: Incident, policy: Policy | None, *, now_ms: int) -> Situation:
    """Collect what the guards look at."""
    breaker = session.scalar(
        sa.select(Incident.id).where(
            Incident.task == incident.task, Incident.state == "breaker_open", Incident.id != incident.id
        )
    )
    last = session.scalar(
        sa.select(sa.func.max(Campaign.created_ms)).where(Campaign.task == incident.task, Campaign.incident_id != "")
    )
    return Situation(
        kind=incident.kind,
        severity=incident.severity,
        devices=len(incident.device_ids),
        labels=_new_labels(session, incident),
        now_ms=now_ms,
        last_attempt_ms=last or 0,
        in_flight=_in_flight(session, incident),
        approved_by_person=incident.state == "approved" and not incident.policy,
        policy_enabled=policy is not None and policy.enabled,
        breaker=breaker or "",
    )


def has_subsided(session: Session, incident: Incident) -> str:
    """Why an incident is over by itself; empty while it is not.

    Over when no affected device runs the release any more, or when the newest windows of every affected device are
    quiet. Devices of which nothing is known keep it open.
    """
    active = dict(
        session.execute(
            sa.select(Device.id, Device.active_release).where(Device.id.in_(incident.device_ids), ~Device.revoked)
        )
        .tuples()
        .all()
    )
    if all(release not in ("", incident.release_id) for release in active.values()):
        return "no affected device runs the release any more"
    quiet = _QUIET.get(incident.kind)
    if quiet is None:
        return ""
    for device_id, release in active.items():
        if release not in ("", incident.release_id):
            continue
        newest = session.scalars(
            sa.select(DriftWindow.verdict)
            .where(
                DriftWindow.device_id == device_id,
                DriftWindow.release_id == incident.release_id,
                DriftWindow.judged,
            )
            .order_by(DriftWindow.id.desc())
            .limit(QUIET_WINDOWS)
        ).all()
        if len(newest) < QUIET_WINDOWS or any(verdict.get("status") not in quiet for verdict in newest):
            return ""
    return f"the newest {QUIET_WINDOWS} windows of every affected device are quiet"


def _new_labels(session: Session, incident: Incident) -> dict[str, int]:
    """Labels of the affected devices since each of them changed (since the incident opened, where that is unknown)."""
    since = {
        device_id: int(incident.evidence.get(device_id, {}).get("since_ms", incident.opened_ms))
        for device_id in incident.device_ids
    }
    rows = session.execute(
        sa.select(LabelRow.device_id, LabelRow.at_ms, LabelRow.labelled).where(
            LabelRow.device_id.in_(incident.device_ids), LabelRow.at_ms >= min(since.values(), default=0)
        )
    )
    counts: dict[str, int] = {}
    for device_id, at_ms, labelled in rows:
        if at_ms >= since[device_id]:
            counts[device_id] = counts.get(device_id, 0) + labelled
    return counts


def _in_flight(session: Session, incident: Incident) -> str:
    other = session.scalar(
        sa.select(Incident.id).where(
            Incident.task == incident.task,
            Incident.id != incident.id,
            Incident.state.in_(incident_machine.IN_FLIGHT),
        )
    )
    campaign = session.scalar(
        sa.select(Campaign.id).where(Campaign.task == incident.task, Campaign.state.in_(campaign_machine.UNDER_WAY))
    )
    rollout = session.scalar(
        sa.select(Rollout.id).where(Rollout.task == incident.task, Rollout.state.in_(rollout_machine.ACTIVE))
    )
    return other or campaign or rollout or ""
