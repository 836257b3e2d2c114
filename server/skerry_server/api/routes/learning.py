"""Tasks, central trainings and jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from skerry_server.api import documents as doc
from skerry_server.api import queries, requests
from skerry_server.api.dependencies import ACT, READ, SHOW, Context, Operator, Viewer
from skerry_server.api.paging import fetch_page
from skerry_server.store.tables import Job, Release
from skerry_server.training import service as training

router = APIRouter(prefix="/v1", tags=["learning"])

JobId = Annotated[str, Path(description="Identifier of a job.")]


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
