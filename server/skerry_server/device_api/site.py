"""What the gateway of a site asks: its report, answered with its roster, and its server certificate."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from skerry_contract.site import SITE_DEVICES
from skerry_server.device_api.caller import Caller, Context
from skerry_server.device_api.requests import BoundedRequest, Pem
from skerry_server.fleet import gateways

router = APIRouter(prefix="/device/v1/site")

Count = Annotated[int, Field(ge=0, le=SITE_DEVICES)]


class ReportRequest(BoundedRequest):
    """What a gateway tells about its site."""

    node_id: str = Field(pattern=r"^[0-9]{1,20}$", description="Its node of the SuperLink here; 0 without one.")
    roster: str = Field(default="", pattern=r"^(?:[0-9a-f]{64})?$", description="Digest of the roster that it has.")
    connected: Count = 0
    campaign_id: Annotated[str, StringConstraints(max_length=63)] = ""
    round: int = Field(default=0, ge=0, le=1_000_000)
    asked: Count = 0
    counted: Count = 0


class CertificateRequest(BoundedRequest):
    """A gateway asks for the certificate that it serves its site with."""

    csr: Pem


@router.post("/report")
def report(body: ReportRequest, context: Context, gateway_id: Caller) -> dict[str, Any]:
    """The roster's digest, and the roster itself unless the gateway has it."""
    told = gateways.SiteReport(body.connected, body.campaign_id, body.round, body.asked, body.counted)
    with context.database.transaction() as session:
        roster, digest = gateways.take_report(session, gateway_id, told, node_id=body.node_id)
    return {"digest": digest, "roster": None if digest == body.roster else roster}


@router.post("/certificate")
def certificate(body: CertificateRequest, context: Context, gateway_id: Caller) -> dict[str, str]:
    """A server certificate for the address that the operator gave the gateway."""
    with context.database.reading() as session:
        return {"certificate": gateways.certify(session, context, gateway_id, csr=body.csr)}
