"""Incidents, policies, the audit ledger and API tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from skerry_server.api import documents as doc
from skerry_server.api import identity, queries, reports, requests, views
from skerry_server.api import oversight_documents as oversight
from skerry_server.api.dependencies import (
    ACT,
    READ,
    SHOW,
    Admin,
    Approver,
    Context,
    Operator,
    Viewer,
    beside_another_type,
)
from skerry_server.api.paging import fetch_page
from skerry_server.audit import ledger
from skerry_server.incidents import policies
from skerry_server.incidents import service as incidents
from skerry_server.store.tables import Incident
from skerry_server.trust import service as trust

router = APIRouter(prefix="/v1", tags=["governance"])

IncidentId = Annotated[str, Path(description="Identifier of an incident.")]
PolicyName = Annotated[str, Path(description="Name of a policy: 1 to 63 characters of a-z, 0-9 and -.")]


@router.get("/incidents", summary="List incidents", responses=READ)
def list_incidents(
    query: Annotated[requests.IncidentQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[oversight.IncidentDocument]:
    """Newest first."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.INCIDENTS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    return doc.PageOf(items=[views.incident(row) for row in page.items], next_page_token=page.next_page_token)


@router.get("/incidents/{incident_id}", summary="Show an incident", responses=SHOW)
def get_incident(incident_id: IncidentId, context: Context, caller: Viewer) -> oversight.IncidentDocument:
    """Its evidence, what was done about it and what a person may do."""
    with context.database.reading() as session:
        return _incident(session, incident_id)


@router.post("/incidents/{incident_id}/approve", summary="Approve what an incident proposes", responses=ACT)
def approve_incident(
    incident_id: IncidentId, body: requests.ReasonRequest, context: Context, caller: Approver
) -> oversight.IncidentDocument:
    """Lets the proposed step happen."""
    with context.database.transaction() as session:
        incidents.approve(session, incident_id, actor=caller.name, reason=body.reason)
        return _incident(session, incident_id)


@router.post("/incidents/{incident_id}/dismiss", summary="Dismiss an incident", responses=ACT)
def dismiss_incident(
    incident_id: IncidentId, body: requests.ReasonRequest, context: Context, caller: Approver
) -> oversight.IncidentDocument:
    """Closes it; nothing is done."""
    with context.database.transaction() as session:
        incidents.dismiss(session, incident_id, actor=caller.name, reason=body.reason)
        return _incident(session, incident_id)


@router.post(
    "/incidents/{incident_id}/report", status_code=202, summary="Ask for a drift report of an incident", responses=ACT
)
def request_report(incident_id: IncidentId, context: Context, caller: Operator) -> doc.JobDocument:
    """Enqueues a job that writes it; asking again while one is being written gives the same job."""
    with context.database.transaction() as session:
        return doc.JobDocument.model_validate(reports.request(session, incident_id, actor=caller.name))


@router.get(
    "/incidents/{incident_id}/report",
    summary="Get the drift report of an incident",
    response_class=HTMLResponse,
    responses=beside_another_type(SHOW),
)
def get_report(incident_id: IncidentId, context: Context, caller: Viewer) -> Response:
    """The newest report that was written, as one HTML page that runs in a sandbox."""
    with context.database.reading() as session:
        queries.find(session, Incident, incident_id, kind="incident")
        page = reports.read(session, context, incident_id)
    return HTMLResponse(page, headers={"content-security-policy": reports.SANDBOX})


@router.get("/trust", summary="Show the keys and the signed metadata", responses=READ)
def get_trust(context: Context, caller: Viewer) -> oversight.TrustDocument:
    """What `skerry keys status` shows: every role, its keys, and until when its metadata hold."""
    return oversight.TrustDocument.model_validate(trust.status(context.layout, context.config.trust).as_dict())


@router.get("/policies", summary="List policies", responses=READ)
def list_policies(
    query: Annotated[requests.PolicyQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[oversight.PolicyDocument]:
    """By name."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.POLICIES, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    items = [oversight.PolicyDocument.model_validate(row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.put("/policies/{name}", summary="Create or replace a policy", responses=ACT)
def put_policy(
    name: PolicyName, body: requests.PolicyRequest, context: Context, caller: Admin
) -> oversight.PolicyDocument:
    """A policy acts without a person: only an admin changes one."""
    with context.database.transaction() as session:
        row = policies.set_policy(
            session, name=name, task=body.task, settings=body.settings, enabled=body.enabled, actor=caller.name
        )
        return oversight.PolicyDocument.model_validate(row)


@router.get("/audit", summary="List the audit ledger", responses=READ)
def list_audit(
    query: Annotated[requests.AuditQuery, Query()], context: Context, caller: Viewer
) -> doc.PageOf[oversight.AuditDocument]:
    """Newest first: who changed what, when."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.AUDIT, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    items = [oversight.AuditDocument.model_validate(row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.get("/audit/verify", summary="Verify the audit ledger", responses=READ)
def verify_audit(context: Context, caller: Viewer) -> oversight.AuditVerificationDocument:
    """Recomputes the chain of hashes from the first entry on."""
    with context.database.reading() as session:
        broken = ledger.verify(session)
        entries, _ = ledger.head(session)
    return oversight.AuditVerificationDocument(intact=broken is None, entries=entries, first_broken=broken)


@router.get("/api-tokens", summary="List API tokens", responses=READ)
def list_api_tokens(
    query: Annotated[requests.ApiTokenQuery, Query()], context: Context, caller: Admin
) -> doc.PageOf[doc.ApiTokenDocument]:
    """Newest first, without their secrets."""
    with context.database.reading() as session:
        page = fetch_page(
            session, queries.API_TOKENS, page_size=query.page_size, page_token=query.page_token, filters=query.filters()
        )
    items = [doc.ApiTokenDocument.model_validate(row) for row in page.items]
    return doc.PageOf(items=items, next_page_token=page.next_page_token)


@router.post("/api-tokens", status_code=201, summary="Make an API token", responses=ACT)
def create_api_token(body: requests.ApiTokenRequest, context: Context, caller: Admin) -> doc.NewApiTokenDocument:
    """The secret is in the answer and nowhere else."""
    with context.database.transaction() as session:
        token = identity.create_api_token(session, name=body.name, role=body.role, actor=caller.name)
    return doc.NewApiTokenDocument(name=body.name, role=body.role, token=token)


@router.post("/api-tokens/{name}/revoke", status_code=204, summary="Revoke an API token", responses=ACT)
def revoke_api_token(
    name: Annotated[str, Path(description="Name of the token.")], context: Context, caller: Admin
) -> None:
    """It stops working at once."""
    with context.database.transaction() as session:
        identity.revoke_api_token(session, name=name, actor=caller.name)


def _incident(session: Session, incident_id: str) -> oversight.IncidentDocument:
    return views.incident(queries.find(session, Incident, incident_id, kind="incident"))
