"""Tasks, central trainings, jobs, and federated campaigns."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from skerry_server.api import documents as doc
from skerry_server.api import queries, requests, views
from skerry_server.api.dependencies import ACT, READ, SHOW, Context, Operator, Viewer
from skerry_server.api.paging import fetch_page
from skerry_server.federation import service as federation
from skerry_server.fleet import service as fleet
from skerry_server.store.tables import Campaign, Job, Release
from skerry_server.training import service as training

router = APIRouter(prefix="/v1", tags=["learning"])

JobId = Annotated[str, Path(description="Identifier of a job.")]
CampaignId = Annotated[str, Path(description="Identifier of a campaign.")]


@router.get("/tasks", summary="List tasks", responses=READ)
def list_tasks(context: Context, caller: Viewer) -> doc.PageOf[doc.TaskDocument]:
    """What this control plane can learn: the installed packages of the entry point group ``skerry.tasks``."""
    with context.database.reading() as session:
        champions = queries.current_champions(session)
        releases = queries.state_counts(session, Release.task)
    items = [
        doc.TaskDocument(
            name=name,
            champion=champions[name].release_id if name in champions else "",
            releases=releases.get(name, 0),
        )
        for name in queries.task_names()
    ]
    return doc.PageOf(items=items, next_page_token="")


@router.post("/trainings", status_code=202, summary="Start a central training", responses=ACT)
def start_training(body: requests.TrainingRequest, context: Context, caller: Operator) -> doc.JobDocument:
    """Answers with the job; its result names the candidate."""
    with context.database.transaction() as session:
        job = training.start_training(session, task=body.task, settings=body.settings, actor=caller.name)
        return doc.JobDocument.model_validate(job)


@router.get("/jobs", summary="List jobs", responses=READ)
def list_jobs(
    query: Annotated[requests.JobQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.JobDocument]:
    """Newest first."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.JOBS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    items = [doc.JobDocument.model_validate(row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.get("/jobs/{job_id}", summary="Show a job", responses=SHOW)
def get_job(job_id: JobId, context: Context, caller: Viewer) -> doc.JobDocument:
    """Its progress, its result, or why it failed."""
    with context.database.reading() as session:
        return doc.JobDocument.model_validate(queries.find(session, Job, job_id, kind="job"))


@router.get("/campaigns", summary="List campaigns", responses=READ)
def list_campaigns(
    query: Annotated[requests.CampaignQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.CampaignDocument]:
    """Newest first, each with its committed rounds."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.CAMPAIGNS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        rounds = queries.campaign_rounds(session, [row.id for row in page.items])
    items = [views.campaign(row, rounds.get(row.id, [])) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.post("/campaigns", status_code=202, summary="Start a campaign", responses=ACT)
def start_campaign(body: requests.CampaignRequest, context: Context, caller: Operator) -> doc.CampaignDetailDocument:
    """Devices are invited as they are online; the campaign ends with a candidate or says why not."""
    with context.database.transaction() as session:
        row = federation.start_campaign(
            session,
            task=body.task,
            cohort_id=fleet.get_cohort(session, body.cohort_id).id,
            strategy=body.strategy,
            settings=body.settings,
            actor=caller.name,
        )
        return _campaign(session, row.id)


@router.get("/campaigns/{campaign_id}", summary="Show a campaign", responses=SHOW)
def get_campaign(campaign_id: CampaignId, context: Context, caller: Viewer) -> doc.CampaignDetailDocument:
    """Its rounds and what the invited devices answered."""
    with context.database.reading() as session:
        return _campaign(session, campaign_id)


@router.post("/campaigns/{campaign_id}/abort", summary="Abort a campaign", responses=ACT)
def abort_campaign(
    campaign_id: CampaignId, body: requests.ReasonRequest, context: Context, caller: Operator
) -> doc.CampaignDetailDocument:
    """Committed rounds are kept; no candidate is made. A reason is needed."""
    with context.database.transaction() as session:
        federation.abort_campaign(session, campaign_id, reason=body.reason, actor=caller.name)
        return _campaign(session, campaign_id)


def _campaign(session: Session, campaign_id: str) -> doc.CampaignDetailDocument:
    row = queries.find(session, Campaign, campaign_id, kind="campaign")
    rounds = queries.campaign_rounds(session, [campaign_id]).get(campaign_id, [])
    return views.campaign_detail(row, rounds, queries.campaign_participants(session, campaign_id))
