"""Puts the summary together: reads counts, lets :mod:`~skerry_server.api.loop` say what they mean."""

from __future__ import annotations

import functools
import importlib.metadata

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.api import oversight_documents as oversight
from skerry_server.api.access import Principal
from skerry_server.api.loop import Observed, describe_loop
from skerry_server.api.queries import current_champions, latest_drift, state_counts
from skerry_server.clock import now_ms
from skerry_server.federation.campaign_machine import UNDER_WAY as ACTIVE_CAMPAIGNS
from skerry_server.incidents.incident_machine import OPEN as OPEN_INCIDENTS
from skerry_server.rollouts.rollout_machine import ACTIVE as ACTIVE_ROLLOUTS
from skerry_server.store.tables import Campaign, CampaignRound, Candidate, Device, Incident, Job, Release, Rollout

#: Update states in which a device is busy with a release.
UPDATING = ("need", "downloading", "verifying", "staging", "proving", "activating", "probation")
#: Verdicts that ask for attention.
DRIFTING = frozenset({"drift", "data_quality"})
#: Incident states in which a person has to decide.
_WAITING_INCIDENTS = ("proposed", "breaker_open")


@functools.cache
def version() -> str:
    """Version of the installed distribution."""
    return importlib.metadata.version("skerry")


def summarize(session: Session, caller: Principal) -> oversight.SummaryDocument:
    """Everything at a glance, from one snapshot."""
    champions = {task: entry.release_id for task, entry in current_champions(session).items()}
    fleet = _fleet(session)
    incidents = state_counts(session, Incident.state)
    rollouts = state_counts(session, Rollout.state)
    campaigns = state_counts(session, Campaign.state)
    verdicts = [str(window.verdict.get("status", "")) for window in latest_drift(session)]
    unfinished = sa.select(Job.kind, sa.func.count()).where(Job.state.in_(("queued", "running"))).group_by(Job.kind)
    seen = Observed(
        jobs={str(kind): int(count) for kind, count in session.execute(unfinished)},
        candidates=state_counts(session, Candidate.state),
        releases=state_counts(session, Release.state).get("available", 0),
        champions=champions,
        rollouts=sum(rollouts.get(state, 0) for state in ACTIVE_ROLLOUTS),
        rollout_says=_rollout_says(session),
        devices=fleet.total,
        online=fleet.online,
        updating=fleet.updating,
        drifting=sum(verdict in DRIFTING for verdict in verdicts),
        judged=len(verdicts),
        open_incidents=sum(incidents.get(state, 0) for state in OPEN_INCIDENTS),
        waiting_incidents=sum(incidents.get(state, 0) for state in _WAITING_INCIDENTS),
        campaigns=sum(campaigns.get(state, 0) for state in ACTIVE_CAMPAIGNS),
        campaign_says=_campaign_says(session),
    )
    return oversight.SummaryDocument(
        version=version(),
        now_ms=now_ms(),
        caller=caller.name,
        role=caller.role,
        fleet=fleet,
        champions=champions,
        jobs=state_counts(session, Job.state),
        rollouts=rollouts,
        campaigns=campaigns,
        incidents=incidents,
        loop=[oversight.StageDocument.model_validate(stage) for stage in describe_loop(seen)],
    )


def _fleet(session: Session) -> oversight.FleetCountsDocument:
    def counted(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

    total, online, updating, labelled = session.execute(
        sa.select(
            sa.func.count(),
            counted(Device.online.is_(True)),
            counted(Device.update_status.in_(UPDATING)),
            sa.func.coalesce(sa.func.sum(Device.labelled_samples), 0),
        )
        .where(Device.revoked.is_(False))
        .select_from(Device)
    ).one()
    return oversight.FleetCountsDocument(total=total, online=online, updating=updating, labelled_samples=labelled)


def _rollout_says(session: Session) -> str:
    newest = sa.select(Rollout).where(Rollout.state.in_(ACTIVE_ROLLOUTS)).order_by(Rollout.created_ms.desc()).limit(1)
    row = session.scalar(newest)
    return "" if row is None else f"{row.release_id}: {row.state.replace('_', ' ')}"


def _campaign_says(session: Session) -> str:
    active = Campaign.state.in_(ACTIVE_CAMPAIGNS)
    row = session.scalar(sa.select(Campaign).where(active).order_by(Campaign.created_ms.desc()).limit(1))
    if row is None:
        return ""
    done = session.scalar(sa.select(sa.func.count()).where(CampaignRound.campaign_id == row.id))
    planned = row.settings.get("rounds", "?")
    return f"{row.strategy}, {done} of {planned} rounds" if done else f"{row.strategy}, {row.state.replace('_', ' ')}"
