"""What the console and monitoring need: the summary, the drift matrix, changes as they happen, health, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

from skerry_server.api import documents as doc
from skerry_server.api import metrics, overview, queries, requests, views
from skerry_server.api import oversight_documents as oversight
from skerry_server.api.changes import ChangeFeed, TooManyListenersError
from skerry_server.api.dependencies import READ, Context, Viewer, beside_another_type
from skerry_server.errors import PlatformError

router = APIRouter(tags=["live"])

#: A comment is sent after so many seconds without an event, so that a dead connection is noticed.
SILENCE_S = 15.0
#: A stream ends after so many seconds; the caller connects again and shows its token again.
STREAM_S = 600.0


@router.get("/v1/summary", summary="The control plane at a glance", responses=READ)
def get_summary(context: Context, caller: Viewer) -> oversight.SummaryDocument:
    """Sizes, states, champions, and the loop with what each box of it is doing."""
    with context.database.reading() as session:
        return overview.summarize(session, caller)


@router.get("/v1/drift", summary="Newest drift verdicts", responses=READ)
def get_drift(
    query: Annotated[requests.DriftQuery, Query()], context: Context, caller: Viewer
) -> oversight.DriftDocument:
    """Devices by features, for the release that each device runs now."""
    with context.database.reading() as session:
        return views.drift(query.task, queries.latest_drift(session, query.task))


@router.get(
    "/v1/events",
    summary="Changes as they happen",
    response_class=StreamingResponse,
    responses=beside_another_type(READ)
    | {200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
)
async def stream_events(request: Request, caller: Viewer) -> StreamingResponse:
    """Server-sent events ``change`` with data ``{"topics": ["devices", ...]}``: read those resources again."""
    feed: ChangeFeed = request.app.state.changes
    stream = feed.listen(silence_s=SILENCE_S)
    return StreamingResponse(_events(stream), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _events(stream: AsyncIterator[frozenset[str]]) -> AsyncIterator[str]:
    end = time.monotonic() + STREAM_S
    yield "event: hello\ndata: {}\n\n"
    try:
        async for topics in stream:
            if topics:
                yield f"event: change\ndata: {json.dumps({'topics': sorted(topics)})}\n\n"
            else:
                yield ": still here\n\n"
            if time.monotonic() > end:
                return
    except TooManyListenersError:
        yield "event: busy\ndata: {}\n\n"


@router.get("/healthz", summary="Whether this process can do its work", responses={503: {"model": doc.Problem}})
def get_health(context: Context) -> oversight.HealthDocument:
    """Asks the store; needs no token."""
    try:
        with context.database.reading() as session:
            session.execute(sa.text("SELECT 1"))
    except sa.exc.SQLAlchemyError as error:
        raise PlatformError("the store does not answer", remedy="look at the API's log") from error
    return oversight.HealthDocument(status="ok", version=overview.version())


@router.get(
    "/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=beside_another_type(READ)
)
def get_metrics(request: Request, context: Context, caller: Viewer) -> PlainTextResponse:
    """Text format 0.0.4; needs a viewer's token."""
    counter: metrics.RequestCounter = request.app.state.requests
    with context.database.reading() as session:
        families = [*metrics.collect(session), counter.metric()]
    return PlainTextResponse(metrics.render(families), headers={"content-type": metrics.CONTENT_TYPE})
