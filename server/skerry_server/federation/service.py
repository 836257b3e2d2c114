"""Starting and aborting campaigns: what the API, the command line and the incidents call.

Every function works inside the caller's transaction: either everything it says happened, or nothing did.
``Campaign.updated_ms`` is the moment at which the current state was entered; deadlines count from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.identifiers import new_id
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.federation import campaign_machine
from skerry_server.federation.settings import parse_settings
from skerry_server.federation.strategies import check_strategy
from skerry_server.fleet.service import get_cohort
from skerry_server.registry import champions
from skerry_server.store.tables import Campaign, CampaignRound, Incident
from skerry_server.training.service import known_task

#: Longest detail of a campaign (characters).
_DETAIL_CHARACTERS = 1_000


def start_campaign(
    session: Session,
    *,
    task: str,
    cohort_id: str,
    strategy: str,
    settings: Mapping[str, Any],
    actor: str,
    incident_id: str = "",
) -> Campaign:
    """Ask for a campaign; the controller begins to recruit at its next step.

    Args:
        session: Open transaction.
        task: What is learned; its champion is where training starts.
        cohort_id: Identifier or name of the cohort whose devices are invited.
        strategy: A key of :data:`skerry_server.federation.strategies.STRATEGIES`.
        settings: Fields of :class:`~skerry_server.federation.settings.CampaignSettings`; the rest from the task.
        actor: Who asked, for the audit ledger.
        incident_id: Incident that the campaign answers.

    Raises:
        InvalidRequestError: An unknown task, strategy or setting, or a value out of range.
        NotFoundError: No such cohort or incident.
        ConflictError: The task has no champion, or another campaign of it is under way.
    """
    check_strategy(strategy)
    checked = parse_settings(known_task(task).default_campaign, settings, strategy=strategy)
    cohort = get_cohort(session, cohort_id)
    if incident_id and session.get(Incident, incident_id) is None:
        raise NotFoundError("incident", incident_id)
    base = champions.champion(session, task)
    if base is None:
        raise ConflictError(f"task {task} has no champion to start from: roll out a release first")
    busy = session.scalar(
        sa.select(Campaign).where(Campaign.task == task, Campaign.state.in_(campaign_machine.ACTIVE)).limit(1)
    )
    if busy is not None:
        raise ConflictError(f"campaign {busy.id} of task {task} is still {busy.state}")
    moment = now_ms()
    campaign = Campaign(
        id=new_id("campaign"),
        task=task,
        base_release=base.id,
        cohort_id=cohort.id,
        strategy=strategy,
        settings=checked.as_dict(),
        state=campaign_machine.APPROVED,
        incident_id=incident_id,
        created_by=actor,
        created_ms=moment,
        updated_ms=moment,
    )
    session.add(campaign)
    ledger.append(
        session,
        actor=actor,
        action="campaign.start",
        subject=campaign.id,
        detail={
            "task": task,
            "base_release": base.id,
            "cohort_id": cohort.id,
            "strategy": strategy,
            "settings": checked.as_dict(),
            "incident_id": incident_id,
        },
    )
    session.flush()
    return campaign


def abort_campaign(session: Session, campaign_id: str, *, reason: str, actor: str) -> Campaign:
    """Stop a campaign that has not ended; committed rounds are kept, no candidate is made.

    Raises:
        InvalidRequestError: No reason is given.
        NotFoundError: There is no such campaign.
        ConflictError: It has ended.
    """
    ledger.check_reason(reason)
    campaign = get_campaign(session, campaign_id)
    if campaign.state not in campaign_machine.ACTIVE:
        raise ConflictError(f"campaign {campaign_id} is {campaign.state}")
    move(session, campaign, "abort", detail=reason, actor=actor)
    return campaign


def get_campaign(session: Session, campaign_id: str) -> Campaign:
    """One campaign, locked for the transaction; raises NotFoundError."""
    campaign = session.get(Campaign, campaign_id, with_for_update=True)
    if campaign is None:
        raise NotFoundError("campaign", campaign_id)
    return campaign


def list_campaigns(session: Session, *, task: str = "", state: str = "", limit: int = 100) -> list[Campaign]:
    """Campaigns, newest first; an empty argument does not filter."""
    query = sa.select(Campaign).order_by(Campaign.created_ms.desc(), Campaign.id.desc()).limit(limit)
    if task:
        query = query.where(Campaign.task == task)
    if state:
        query = query.where(Campaign.state == state)
    return list(session.scalars(query))


def campaign_rounds(session: Session, campaign_id: str) -> list[CampaignRound]:
    """Committed rounds, in order."""
    query = sa.select(CampaignRound).where(CampaignRound.campaign_id == campaign_id)
    return list(session.scalars(query.order_by(CampaignRound.number)))


def move(session: Session, campaign: Campaign, event: str, *, detail: str, actor: str) -> None:
    """Take an event of the machine and write it down, in the ledger too.

    Raises:
        IllegalCampaignEventError: The state does not take the event; nothing was changed.
    """
    before = campaign.state
    campaign.state = campaign_machine.next_state(before, event)
    campaign.detail = detail[:_DETAIL_CHARACTERS]
    campaign.updated_ms = now_ms()
    ledger.append(
        session,
        actor=actor,
        action=f"campaign.{event}",
        subject=campaign.id,
        detail={"from": before, "to": campaign.state, "detail": campaign.detail},
    )
    session.flush()
