"""Every read of the API: the lists, and what is put together from several tables. Nothing here writes.

A list is described once as a :class:`~skerry_server.api.paging.Listing`, and REST, gRPC and console all use it.
"""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.api.paging import Condition, Filter, Listing
from skerry_server.errors import InvalidRequestError, NotFoundError
from skerry_server.federation.service import job_id
from skerry_server.fleet.service import cohort_device_ids
from skerry_server.store.tables import (
    ApiToken,
    AuditRow,
    Base,
    Campaign,
    CampaignParticipant,
    CampaignRound,
    Candidate,
    ChampionEntry,
    Cohort,
    Device,
    DriftWindow,
    Fitness,
    Incident,
    Job,
    LabelRow,
    Policy,
    Release,
    Rollout,
    RolloutDevice,
)

Row = TypeVar("Row", bound=Base)

#: Verdicts that say something about a window: those of ``monitoring.judge``, which this process need not load.
TELLING_VERDICTS = frozenset({"ok", "suspect", "drift", "data_quality"})


def _equals(column: Any) -> Filter:
    def condition(_session: Session, text: str) -> Condition:
        result: Condition = column == text
        return result

    return condition


def _flag(name: str, column: Any) -> Filter:
    def condition(_session: Session, text: str) -> Condition:
        if text not in ("true", "false"):
            raise InvalidRequestError(f"filter.{name}", expected="true or false", got=text)
        result: Condition = column.is_(text == "true")
        return result

    return condition


def _label(_session: Session, text: str) -> Condition:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise InvalidRequestError("filter.label", expected="name=value", got=text)
    condition: Condition = Device.labels[name].as_string() == value
    return condition


def _cohort(session: Session, text: str) -> Condition:
    return Device.id.in_(cohort_device_ids(session, text))


DEVICES = Listing(
    "devices",
    Device,
    (Device.__table__.c.id,),
    {
        "online": _flag("online", Device.online),
        "revoked": _flag("revoked", Device.revoked),
        "kind": _equals(Device.kind),
        "device_class": _equals(Device.device_class),
        "active_release": _equals(Device.active_release),
        "update_status": _equals(Device.update_status),
        "label": _label,
        "cohort": _cohort,
    },
)
COHORTS = Listing("cohorts", Cohort, (Cohort.__table__.c.name,), {"name": _equals(Cohort.name)})
JOBS = Listing(
    "jobs",
    Job,
    (Job.__table__.c.created_ms, Job.__table__.c.id),
    {"kind": _equals(Job.kind), "state": _equals(Job.state)},
    newest_first=True,
)
CANDIDATES = Listing(
    "candidates",
    Candidate,
    (Candidate.__table__.c.created_ms, Candidate.__table__.c.id),
    {
        "task": _equals(Candidate.task),
        "state": _equals(Candidate.state),
        "origin": _equals(Candidate.origin),
        "campaign": _equals(Candidate.campaign_id),
    },
    newest_first=True,
)
RELEASES = Listing(
    "releases",
    Release,
    (Release.__table__.c.created_ms, Release.__table__.c.id),
    {"task": _equals(Release.task), "state": _equals(Release.state), "origin": _equals(Release.origin)},
    newest_first=True,
)
ROLLOUTS = Listing(
    "rollouts",
    Rollout,
    (Rollout.__table__.c.created_ms, Rollout.__table__.c.id),
    {
        "task": _equals(Rollout.task),
        "state": _equals(Rollout.state),
        "release": _equals(Rollout.release_id),
        "cohort": _equals(Rollout.cohort_id),
    },
    newest_first=True,
)
CAMPAIGNS = Listing(
    "campaigns",
    Campaign,
    (Campaign.__table__.c.created_ms, Campaign.__table__.c.id),
    {
        "task": _equals(Campaign.task),
        "state": _equals(Campaign.state),
        "strategy": _equals(Campaign.strategy),
        "incident": _equals(Campaign.incident_id),
    },
    newest_first=True,
)
INCIDENTS = Listing(
    "incidents",
    Incident,
    (Incident.__table__.c.opened_ms, Incident.__table__.c.id),
    {
        "task": _equals(Incident.task),
        "state": _equals(Incident.state),
        "kind": _equals(Incident.kind),
        "severity": _equals(Incident.severity),
        "release": _equals(Incident.release_id),
    },
    newest_first=True,
)
POLICIES = Listing(
    "policies",
    Policy,
    (Policy.__table__.c.name,),
    {"task": _equals(Policy.task), "enabled": _flag("enabled", Policy.enabled)},
)
CHAMPIONS = Listing(
    "champions",
    ChampionEntry,
    (ChampionEntry.__table__.c.id,),
    {"task": _equals(ChampionEntry.task), "release": _equals(ChampionEntry.release_id)},
    newest_first=True,
)
FITNESS = Listing(
    "fitness",
    Fitness,
    (Fitness.__table__.c.id,),
    {
        "task": _equals(Fitness.task),
        "release": _equals(Fitness.release_id),
        "device": _equals(Fitness.device_id),
        "profile": _equals(Fitness.profile_sha256),
    },
    newest_first=True,
)
AUDIT = Listing(
    "audit",
    AuditRow,
    (AuditRow.__table__.c.sequence,),
    {"actor": _equals(AuditRow.actor), "action": _equals(AuditRow.action), "subject": _equals(AuditRow.subject)},
    newest_first=True,
)
API_TOKENS = Listing(
    "api-tokens",
    ApiToken,
    (ApiToken.__table__.c.created_ms, ApiToken.__table__.c.token_sha256),
    {"role": _equals(ApiToken.role), "name": _equals(ApiToken.name), "revoked": _flag("revoked", ApiToken.revoked)},
    newest_first=True,
)


def find(session: Session, table: type[Row], identifier: str, *, kind: str) -> Row:
    """The row with this primary key.

    Raises:
        NotFoundError: There is none.
    """
    row = session.get(table, identifier)
    if row is None:
        raise NotFoundError(kind, identifier[:200])
    return row


@dataclass(frozen=True)
class LabelledAccuracy:
    """How often a device was right where the truth is known.

    Attributes:
        labelled: Requests with a label, of the release that the device runs now.
        correct: Those that were answered rightly.
    """

    labelled: int
    correct: int


def accuracies(session: Session, device_ids: Iterable[str]) -> dict[str, LabelledAccuracy]:
    """Per device, over every label report about the release that it runs now; devices without one are left out."""
    query = (
        sa.select(LabelRow.device_id, sa.func.sum(LabelRow.labelled), sa.func.sum(LabelRow.correct))
        .join(Device, sa.and_(Device.id == LabelRow.device_id, Device.active_release == LabelRow.release_id))
        .where(LabelRow.device_id.in_(list(device_ids)))
        .group_by(LabelRow.device_id)
    )
    return {
        device: LabelledAccuracy(int(labelled), int(correct)) for device, labelled, correct in session.execute(query)
    }


def rollout_devices(session: Session, rollout_ids: Iterable[str]) -> dict[str, list[RolloutDevice]]:
    """Devices of each rollout: canary first, then by name."""
    query = (
        sa.select(RolloutDevice)
        .where(RolloutDevice.rollout_id.in_(list(rollout_ids)))
        .order_by(
            RolloutDevice.rollout_id, sa.case((RolloutDevice.stage == "canary", 0), else_=1), RolloutDevice.device_id
        )
    )
    return _grouped(session.scalars(query), "rollout_id")


def campaign_rounds(session: Session, campaign_ids: Iterable[str]) -> dict[str, list[CampaignRound]]:
    """Committed rounds of each campaign, in order."""
    query = (
        sa.select(CampaignRound)
        .where(CampaignRound.campaign_id.in_(list(campaign_ids)))
        .order_by(CampaignRound.campaign_id, CampaignRound.number)
    )
    return _grouped(session.scalars(query), "campaign_id")


def campaign_participants(session: Session, campaign_id: str) -> Sequence[CampaignParticipant]:
    """Devices of one campaign's cohort: what they answered, or why they were not asked."""
    query = (
        sa.select(CampaignParticipant)
        .where(CampaignParticipant.campaign_id == campaign_id)
        .order_by(CampaignParticipant.device_id)
    )
    return session.scalars(query).all()


def campaign_progress(session: Session, campaign_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the job of each campaign told last; a campaign without a job is left out."""
    jobs = {job_id(campaign_id): campaign_id for campaign_id in campaign_ids}
    query = sa.select(Job.id, Job.progress).where(Job.id.in_(list(jobs)))
    return {jobs[found]: dict(progress) for found, progress in session.execute(query)}


def latest_drift(session: Session, task: str = "") -> Sequence[DriftWindow]:
    """The newest window with a verdict of every device about the release that it runs, by device; of one task if named.

    Windows that had too little to say anything about are passed over.
    """
    newest = (
        sa.select(sa.func.max(DriftWindow.id))
        .join(Device, sa.and_(Device.id == DriftWindow.device_id, Device.active_release == DriftWindow.release_id))
        .where(
            DriftWindow.judged.is_(True),
            DriftWindow.verdict["status"].as_string().in_(TELLING_VERDICTS),
            Device.revoked.is_(False),
        )
        .group_by(DriftWindow.device_id)
    )
    if task:
        newest = newest.join(Release, Release.id == DriftWindow.release_id).where(Release.task == task)
    return session.scalars(
        sa.select(DriftWindow).where(DriftWindow.id.in_(newest)).order_by(DriftWindow.device_id)
    ).all()


def current_champions(session: Session) -> dict[str, ChampionEntry]:
    """Newest entry of the ledger, by task."""
    newest = sa.select(sa.func.max(ChampionEntry.id)).group_by(ChampionEntry.task)
    return {
        entry.task: entry for entry in session.scalars(sa.select(ChampionEntry).where(ChampionEntry.id.in_(newest)))
    }


def state_counts(session: Session, column: Any) -> dict[str, int]:
    """How many rows have each value of a column."""
    return {
        str(state): int(count) for state, count in session.execute(sa.select(column, sa.func.count()).group_by(column))
    }


def task_names() -> list[str]:
    """Names of the installed tasks, sorted."""
    return sorted(entry.name for entry in importlib.metadata.entry_points(group="skerry.tasks"))


def _grouped(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, column)].append(row)
    return groups
