"""Candidates, releases, champions and rollouts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from skerry_server.api import documents as doc
from skerry_server.api import queries, requests, views
from skerry_server.api.dependencies import ACT, READ, SHOW, Approver, Context, Operator, Viewer
from skerry_server.api.paging import fetch_page
from skerry_server.fleet import service as fleet
from skerry_server.releases import service as releases
from skerry_server.rollouts import service as rollouts
from skerry_server.store.tables import Candidate, Release, Rollout

router = APIRouter(prefix="/v1", tags=["releases"])

CandidateId = Annotated[str, Path(description="Identifier of a candidate.")]
ReleaseId = Annotated[str, Path(description="Identifier of a release.")]
RolloutId = Annotated[str, Path(description="Identifier of a rollout.")]


@router.get("/candidates", summary="List candidates", responses=READ)
def list_candidates(
    query: Annotated[requests.CandidateQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.CandidateDocument]:
    """Newest first, each with its gates."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.CANDIDATES, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    return doc.PageOf(items=[views.candidate(row) for row in page.items], next_page_token=page.next_page_token)


@router.get("/candidates/{candidate_id}", summary="Show a candidate", responses=SHOW)
def get_candidate(candidate_id: CandidateId, context: Context, caller: Viewer) -> doc.CandidateDocument:
    """Its metrics, and which gates it passed."""
    with context.database.reading() as session:
        return views.candidate(queries.find(session, Candidate, candidate_id, kind="candidate"))


@router.post("/candidates/{candidate_id}/publish", status_code=201, summary="Publish a candidate", responses=ACT)
def publish_candidate(candidate_id: CandidateId, context: Context, caller: Approver) -> doc.ReleaseDocument:
    """Signs it as a release. Only a candidate that passed its gates can be published; twice gives the same release."""
    with context.database.transaction() as session:
        row = releases.publish(session, context, candidate_id, caller.name)
        return _release(session, row)


@router.get("/releases", summary="List releases", responses=READ)
def list_releases(
    query: Annotated[requests.ReleaseQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.ReleaseDocument]:
    """Newest first."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.RELEASES, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        champions = {entry.release_id for entry in queries.current_champions(session).values()}
    items = [views.release(row, champion=row.id in champions) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.get("/releases/{release_id}", summary="Show a release", responses=SHOW)
def get_release(release_id: ReleaseId, context: Context, caller: Viewer) -> doc.ReleaseDocument:
    """Its origin, metrics and whether it is champion."""
    with context.database.reading() as session:
        return _release(session, queries.find(session, Release, release_id, kind="release"))


@router.get("/releases/{release_id}/manifest", summary="Show what was signed", responses=SHOW)
def get_manifest(release_id: ReleaseId, context: Context, caller: Viewer) -> doc.ManifestDocument:
    """Files, variants and signatures, and the signed envelope itself."""
    with context.database.reading() as session:
        row = queries.find(session, Release, release_id, kind="release")
    return views.manifest(row)


@router.post("/releases/{release_id}/withdraw", summary="Withdraw a release", responses=ACT)
def withdraw_release(
    release_id: ReleaseId, body: requests.ReasonRequest, context: Context, caller: Approver
) -> doc.ReleaseDocument:
    """No rollout starts with it any more; devices that run it go on. A reason is needed."""
    with context.database.transaction() as session:
        row = releases.withdraw(session, release_id, actor=caller.name, reason=body.reason)
        return _release(session, row)


@router.get("/champions", summary="List the ledger of champions", responses=READ)
def list_champions(
    query: Annotated[requests.ChampionQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.ChampionDocument]:
    """Newest first: which release was champion of which task, from when, why."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.CHAMPIONS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    items = [doc.ChampionDocument.model_validate(row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.get("/rollouts", summary="List rollouts", responses=READ)
def list_rollouts(
    query: Annotated[requests.RolloutQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.RolloutDocument]:
    """Newest first, each with its devices."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.ROLLOUTS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        devices = queries.rollout_devices(session, [row.id for row in page.items])
    items = [views.rollout(row, devices.get(row.id, [])) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.post("/rollouts", status_code=202, summary="Start a rollout", responses=ACT)
def start_rollout(body: requests.RolloutRequest, context: Context, caller: Operator) -> doc.RolloutDocument:
    """First to the canary stage, then to the rest; rolls back by itself when devices fail."""
    with context.database.transaction() as session:
        row = rollouts.start_rollout(
            session,
            release_id=body.release_id,
            cohort_id=fleet.get_cohort(session, body.cohort_id).id,
            canary_percent=body.canary_percent,
            probation_ms=body.probation_ms,
            actor=caller.name,
        )
        return _rollout(session, row.id)


@router.get("/rollouts/{rollout_id}", summary="Show a rollout", responses=SHOW)
def get_rollout(rollout_id: RolloutId, context: Context, caller: Viewer) -> doc.RolloutDocument:
    """Its stage and the state of every device."""
    with context.database.reading() as session:
        return _rollout(session, rollout_id)


@router.post("/rollouts/{rollout_id}/abort", summary="Abort a rollout", responses=ACT)
def abort_rollout(
    rollout_id: RolloutId, body: requests.ReasonRequest, context: Context, caller: Operator
) -> doc.RolloutDocument:
    """Devices that have the release already are told to go back. A reason is needed."""
    with context.database.transaction() as session:
        rollouts.abort_rollout(session, rollout_id, reason=body.reason, actor=caller.name)
        return _rollout(session, rollout_id)


def _release(session: Session, row: Release) -> doc.ReleaseDocument:
    champion = queries.current_champions(session).get(row.task)
    return views.release(row, champion=champion is not None and champion.release_id == row.id)


def _rollout(session: Session, rollout_id: str) -> doc.RolloutDocument:
    row = queries.find(session, Rollout, rollout_id, kind="rollout")
    return views.rollout(row, queries.rollout_devices(session, [rollout_id]).get(rollout_id, []))
