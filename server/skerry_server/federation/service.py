"""Making, approving, pausing, resuming and aborting campaigns: what the API, the command line and the incidents call.

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
from skerry_server.federation import campaign_machine, privacy_ledger
from skerry_server.federation.least_devices import require_devices
from skerry_server.federation.settings import parse_settings
from skerry_server.federation.strategies import check_strategy
from skerry_server.fleet.service import cohort_device_ids, get_cohort
from skerry_server.jobs import queue
from skerry_server.registry import champions
from skerry_server.store.tables import Campaign, CampaignRound, Incident, Job
from skerry_server.training.service import known_task

#: Longest detail of a campaign (characters).
_DETAIL_CHARACTERS = 1_000


def create_campaign(
    session: Session,
    *,
    task: str,
    cohort_id: str,
    strategy: str,
    settings: Mapping[str, Any],
    actor: str,
    incident_id: str = "",
    alone: bool = False,
    epsilon_limit: float = 0.0,
) -> Campaign:
    """Make a draft, which does nothing until it is approved.

    Args:
        session: Open transaction.
        task: What is learned; its champion is where training starts.
        cohort_id: Identifier or name of the cohort whose devices are invited.
        strategy: A key of :data:`skerry_server.federation.strategies.STRATEGIES`.
        settings: Fields of :class:`~skerry_server.federation.settings.CampaignSettings`; the rest from the task.
        actor: Who asked, for the audit ledger.
        incident_id: Incident that the campaign answers.
        alone: Refuse while another campaign of the task is under way, as its approval would.
        epsilon_limit: See :func:`~skerry_server.federation.privacy_ledger.check_limit`.

    Raises:
        InvalidRequestError: An unknown task, strategy or setting, a value out of range, or too few devices for the
            strategy.
        NotFoundError: No such cohort or incident.
        ConflictError: The task has no champion, or ``alone`` and another campaign is under way.
    """
    check_strategy(strategy)
    checked = parse_settings(known_task(task).default_campaign, settings, strategy=strategy)
    cohort = get_cohort(session, cohort_id)
    checked = require_devices(
        checked, strategy=strategy, given=settings, cohort_size=len(cohort_device_ids(session, cohort.id))
    )
    if incident_id and session.get(Incident, incident_id) is None:
        raise NotFoundError("incident", incident_id)
    base = champions.champion(session, task)
    if base is None:
        raise ConflictError(f"task {task} has no champion to start from: roll out a release first")
    if alone:
        _check_free(session, task)
    privacy_ledger.check_limit(session, task=task, cohort_id=cohort.id, settings=checked, limit=epsilon_limit)
    moment = now_ms()
    campaign = Campaign(
        id=new_id("campaign"),
        task=task,
        base_release=base.id,
        cohort_id=cohort.id,
        strategy=strategy,
        settings=checked.as_dict(),
        state=campaign_machine.DRAFT,
        incident_id=incident_id,
        created_by=actor,
        created_ms=moment,
        updated_ms=moment,
    )
    session.add(campaign)
    ledger.append(
        session,
        actor=actor,
        action="campaign.create",
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


def start_campaign(
    session: Session,
    *,
    task: str,
    cohort_id: str,
    strategy: str,
    settings: Mapping[str, Any],
    actor: str,
    incident_id: str = "",
    epsilon_limit: float = 0.0,
) -> Campaign:
    """Make a campaign and approve it at once; the controller begins to recruit at its next step.

    Raises:
        InvalidRequestError, NotFoundError, ConflictError: See :func:`create_campaign` and :func:`approve_campaign`.
    """
    campaign = create_campaign(
        session,
        task=task,
        cohort_id=cohort_id,
        strategy=strategy,
        settings=settings,
        actor=actor,
        incident_id=incident_id,
        alone=True,
        epsilon_limit=epsilon_limit,
    )
    return approve_campaign(session, campaign.id, actor=actor)


def approve_campaign(session: Session, campaign_id: str, *, actor: str, reason: str = "") -> Campaign:
    """Let a draft begin; it starts from the task's champion of now.

    Raises:
        NotFoundError: There is no such campaign.
        ConflictError: It is no draft, the task has no champion any more, or another campaign of it is under way.
    """
    campaign = get_campaign(session, campaign_id)
    _check_action(campaign, "approve")
    _check_free(session, campaign.task)
    base = champions.champion(session, campaign.task)
    if base is None:
        raise ConflictError(f"task {campaign.task} has no champion to start from: roll out a release first")
    campaign.base_release = base.id
    campaign.approved_by, campaign.approved_ms = actor, now_ms()
    move(session, campaign, "approve", detail=reason, actor=actor)
    return campaign


def pause_campaign(session: Session, campaign_id: str, *, reason: str, actor: str) -> Campaign:
    """Stop a campaign until it is resumed: no invitation, no round; what is committed or journalled stays.

    Raises:
        InvalidRequestError: No reason is given.
        NotFoundError: There is no such campaign.
        ConflictError: It has ended, waits for approval or for its gates, or is paused.
    """
    ledger.check_reason(reason)
    campaign = get_campaign(session, campaign_id)
    _check_action(campaign, "pause")
    campaign.paused_from = campaign.state
    move(session, campaign, "pause", detail=reason, actor=actor)
    return campaign


def resume_campaign(session: Session, campaign_id: str, *, actor: str, reason: str = "") -> Campaign:
    """Let a paused campaign go on where it was; the deadline of that state counts anew.

    Raises:
        NotFoundError: There is no such campaign.
        ConflictError: It is not paused.
    """
    campaign = get_campaign(session, campaign_id)
    _check_action(campaign, "resume")
    event = campaign_machine.resume_event(campaign.paused_from)
    campaign.paused_from = ""
    move(session, campaign, event, detail=reason, actor=actor)
    if campaign.state == campaign_machine.RUNNING and session.get(Job, job_id(campaign.id)) is not None:
        queue.restart(session, job_id(campaign.id))
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
    _check_action(campaign, "abort")
    move(session, campaign, "abort", detail=reason, actor=actor)
    return campaign


def job_id(campaign_id: str) -> str:
    """Identifier of the job that runs a campaign."""
    return f"job-{campaign_id}"


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


def _check_action(campaign: Campaign, action: str) -> None:
    possible = campaign_machine.actions(campaign.state)
    if action not in possible:
        instead = f"; what can be done: {', '.join(possible)}" if possible else ", which is final"
        raise ConflictError(f"campaign {campaign.id} is {campaign.state}{instead}")


def _check_free(session: Session, task: str) -> None:
    """A task has one campaign at a time; drafts do not count."""
    under_way = Campaign.state.in_(campaign_machine.UNDER_WAY)
    busy = session.scalar(sa.select(Campaign).where(Campaign.task == task, under_way).limit(1))
    if busy is not None:
        raise ConflictError(f"campaign {busy.id} of task {task} is still {busy.state}")
