"""Enrolment tokens, devices and cohorts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from skerry_server import server_identity
from skerry_server.api import documents as doc
from skerry_server.api import queries, requests, views
from skerry_server.api.dependencies import ACT, READ, SHOW, Context, Operator, Viewer
from skerry_server.api.paging import fetch_page
from skerry_server.clock import now_ms
from skerry_server.fleet import enrollment, service
from skerry_server.store.tables import Cohort, Device

router = APIRouter(prefix="/v1", tags=["fleet"])

DeviceId = Annotated[str, Path(description="Identifier of a device.")]
CohortId = Annotated[str, Path(description="Identifier of a cohort; 'all' is every device.")]


@router.post("/enrollment-tokens", status_code=201, summary="Make an enrolment token", responses=ACT)
def create_enrollment_token(
    body: requests.EnrollmentTokenRequest, context: Context, caller: Operator
) -> doc.EnrollmentTokenDocument:
    """The secret is in the answer and nowhere else. One device can enrol with it."""
    with context.database.transaction() as session:
        token = enrollment.create_token(session, context, actor=caller.name, ttl_s=body.ttl_s, labels=body.labels)
    return doc.EnrollmentTokenDocument(
        token=token,
        expires_ms=now_ms() + body.ttl_s * 1000,
        labels=body.labels,
        server=server_identity.device_api_url(context.config),
    )


@router.get("/devices", summary="List devices", responses=READ)
def list_devices(
    query: Annotated[requests.DeviceQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.DeviceDocument]:
    """By identifier."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.DEVICES, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        accuracy = queries.accuracies(session, [row.id for row in page.items])
    items = [views.device(row, accuracy.get(row.id)) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.get("/devices/{device_id}", summary="Show a device", responses=SHOW)
def get_device(device_id: DeviceId, context: Context, caller: Viewer) -> doc.DeviceDocument:
    """What it is, what it reported last, what is wanted of it."""
    with context.database.reading() as session:
        return _device(session, device_id)


@router.put("/devices/{device_id}/labels", summary="Replace the labels of a device", responses=ACT)
def set_labels(
    device_id: DeviceId, body: requests.LabelsRequest, context: Context, caller: Operator
) -> doc.DeviceDocument:
    """Cohorts select by labels: the device may enter and leave cohorts by this."""
    with context.database.transaction() as session:
        service.set_labels(session, device_id, labels=body.labels, actor=caller.name)
        return _device(session, device_id)


@router.post("/devices/{device_id}/revoke", summary="Revoke a device", responses=ACT)
def revoke_device(
    device_id: DeviceId, body: requests.ReasonRequest, context: Context, caller: Operator
) -> doc.DeviceDocument:
    """Its certificate is refused and its sessions end; what it reported stays. A fresh token enrols it again."""
    with context.database.transaction() as session:
        enrollment.revoke(session, context, device_id, actor=caller.name, reason=body.reason)
        return _device(session, device_id)


@router.get("/cohorts", summary="List cohorts", responses=READ)
def list_cohorts(
    query: Annotated[requests.CohortQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[doc.CohortDocument]:
    """By name."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.COHORTS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
        items = [_cohort(session, row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.post("/cohorts", status_code=201, summary="Make a cohort", responses=ACT)
def create_cohort(body: requests.CohortRequest, context: Context, caller: Operator) -> doc.CohortDocument:
    """Membership follows the labels: it is looked up whenever it is needed."""
    with context.database.transaction() as session:
        row = service.create_cohort(session, name=body.name, selector=body.selector, actor=caller.name)
        return _cohort(session, row)


@router.get("/cohorts/{cohort_id}", summary="Show a cohort", responses=SHOW)
def get_cohort(cohort_id: CohortId, context: Context, caller: Viewer) -> doc.CohortDocument:
    """Its selector and how many devices it selects now."""
    with context.database.reading() as session:
        return _cohort(session, service.get_cohort(session, cohort_id))


def _device(session: Session, device_id: str) -> doc.DeviceDocument:
    row = queries.find(session, Device, device_id, kind="device")
    return views.device(row, queries.accuracies(session, [device_id]).get(device_id))


def _cohort(session: Session, row: Cohort) -> doc.CohortDocument:
    return views.cohort(row, len(service.cohort_device_ids(session, row.id)))
