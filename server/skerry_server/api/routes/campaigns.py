"""Federated campaigns: list, show, make, approve, pause, resume, abort."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from skerry_server.api import campaign_documents as doc
from skerry_server.api import campaign_views, queries, requests
from skerry_server.api.dependencies import ACT, READ, SHOW, Approver, Context, Operator, Viewer
from skerry_server.api.documents import PageOf
from skerry_server.api.paging import fetch_page
from skerry_server.federation import privacy_ledger
from skerry_server.federation import service as federation
from skerry_server.fleet import service as fleet
from skerry_server.store.tables import Campaign

router = APIRouter(prefix="/v1", tags=["learning"])

CampaignId = Annotated[str, Path(description="Identifier of a campaign.")]


@router.get("/campaigns", summary="List campaigns", responses=READ)
def list_campaigns(
    query: Annotated[requests.CampaignQuery, Query()], context: Context, caller: Viewer
) -> PageOf[doc.CampaignDocument]:
    """Newest first, each with its committed rounds."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.CAMPAIGNS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        identifiers = [row.id for row in page.items]
        rounds = queries.campaign_rounds(session, identifiers)
        progress = queries.campaign_progress(session, identifiers)
    items = [
        campaign_views.campaign(row, rounds.get(row.id, []), progress=progress.get(row.id, {})) for row in page.items
    ]
    return PageOf(items=items, next_page_token=page.next_page_token)


@router.post("/campaigns", status_code=202, summary="Start a campaign", responses=ACT)
def start_campaign(body: requests.CampaignRequest, context: Context, caller: Operator) -> doc.CampaignDetailDocument:
    """Devices are invited as they are online; the campaign ends with a candidate or says why not.

    With ``draft`` nothing happens until an approver approves it.
    """
    with context.database.transaction() as session:
        make = federation.create_campaign if body.draft else federation.start_campaign
        row = make(
            session,
            task=body.task,
            cohort_id=fleet.get_cohort(session, body.cohort_id).id,
            strategy=body.strategy,
            settings=body.settings,
            actor=caller.name,
            epsilon_limit=context.config.epsilon_limit,
        )
        return _campaign(session, context, row.id)


@router.get("/campaigns/{campaign_id}", summary="Show a campaign", responses=SHOW)
def get_campaign(campaign_id: CampaignId, context: Context, caller: Viewer) -> doc.CampaignDetailDocument:
    """Its rounds, its devices, and why some stay out."""
    with context.database.reading() as session:
        return _campaign(session, context, campaign_id)


@router.post("/campaigns/{campaign_id}/approve", summary="Approve a draft", responses=ACT)
def approve_campaign(
    campaign_id: CampaignId, body: requests.ReasonRequest, context: Context, caller: Approver
) -> doc.CampaignDetailDocument:
    """It begins to recruit, from the champion of now."""
    with context.database.transaction() as session:
        federation.approve_campaign(session, campaign_id, reason=body.reason, actor=caller.name)
        return _campaign(session, context, campaign_id)


@router.post("/campaigns/{campaign_id}/pause", summary="Pause a campaign", responses=ACT)
def pause_campaign(
    campaign_id: CampaignId, body: requests.ReasonRequest, context: Context, caller: Operator
) -> doc.CampaignDetailDocument:
    """Nothing is asked of devices until it is resumed; committed rounds and journalled updates stay. Needs a reason."""
    with context.database.transaction() as session:
        federation.pause_campaign(session, campaign_id, reason=body.reason, actor=caller.name)
        return _campaign(session, context, campaign_id)


@router.post("/campaigns/{campaign_id}/resume", summary="Resume a paused campaign", responses=ACT)
def resume_campaign(
    campaign_id: CampaignId, body: requests.ReasonRequest, context: Context, caller: Operator
) -> doc.CampaignDetailDocument:
    """It goes on where it was paused; the deadline of that state counts anew."""
    with context.database.transaction() as session:
        federation.resume_campaign(session, campaign_id, reason=body.reason, actor=caller.name)
        return _campaign(session, context, campaign_id)


@router.post("/campaigns/{campaign_id}/abort", summary="Abort a campaign", responses=ACT)
def abort_campaign(
    campaign_id: CampaignId, body: requests.ReasonRequest, context: Context, caller: Operator
) -> doc.CampaignDetailDocument:
    """Committed rounds are kept; no candidate is made. A reason is needed."""
    with context.database.transaction() as session:
        federation.abort_campaign(session, campaign_id, reason=body.reason, actor=caller.name)
        return _campaign(session, context, campaign_id)


def _campaign(session: Session, context: Context, campaign_id: str) -> doc.CampaignDetailDocument:
    row = queries.find(session, Campaign, campaign_id, kind="campaign")
    return campaign_views.campaign_detail(
        row,
        queries.campaign_rounds(session, [campaign_id]).get(campaign_id, []),
        queries.campaign_participants(session, campaign_id),
        progress=queries.campaign_progress(session, [campaign_id]).get(campaign_id, {}),
        total=privacy_ledger.total(session, task=row.task, cohort_id=row.cohort_id),
        limit=context.config.epsilon_limit,
    )
