"""Fitness certificates of devices, and what they taught."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from skerry_server.api import documents as doc
from skerry_server.api import queries, requests
from skerry_server.api.dependencies import READ, Context, Viewer
from skerry_server.api.paging import fetch_page
from skerry_server.fitness.ledger import lessons

router = APIRouter(prefix="/v1", tags=["releases"])


@router.get("/fitness", summary="List fitness certificates", responses=READ)
def list_fitness(
    query: Annotated[requests.FitnessQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.FitnessDocument]:
    """What each device measured of the forms of a release, newest first; one per device and release."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.FITNESS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        items = [doc.FitnessDocument.model_validate(row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.get("/fitness/lessons", summary="List what devices taught about forms", responses=READ)
def list_lessons(
    query: Annotated[requests.LessonQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.LessonDocument]:
    """For each release and kind of device: the fastest form of each network, and whether it is recommended."""
    with context.database.reading() as session:
        found = lessons(session, task=query.task or "", release_id=query.release or "")
    items = [
        doc.LessonDocument(
            release_id=lesson.release_id,
            task=lesson.task,
            profile_sha256=lesson.profile_sha256,
            profile=doc.ProfileDocument.model_validate(lesson.profile),
            **asdict(lesson.learned),
        )
        for lesson in found
    ]
    return doc.PageOf(items=items, next_page_token="")
