"""The authority, enrolment and renewal."""

from __future__ import annotations

from fastapi import APIRouter, Response

from skerry_server import server_identity
from skerry_server.device_api.caller import Context
from skerry_server.device_api.requests import EnrollmentAnswer, EnrollRequest, RenewalAnswer, RenewRequest
from skerry_server.fleet import enrollment

router = APIRouter(prefix="/device/v1")


@router.get("/authority", response_class=Response)
def authority(context: Context) -> Response:
    """Certificate of the authority; the device compares its fingerprint with the one in its token."""
    text = server_identity.read_authority(context.layout.authority_certificate)
    return Response(text, media_type="application/x-pem-file")


@router.post("/enroll", status_code=201)
def enroll(body: EnrollRequest, context: Context) -> EnrollmentAnswer:
    """Make a device of whoever holds a token."""
    with context.database.transaction() as session:
        made = enrollment.enroll(
            session,
            context,
            token=body.token,
            device_id=body.device_id,
            csr=body.csr,
            device_class=body.device_class,
            labels=body.labels,
            node_public_key=body.node_public_key,
        )
    return EnrollmentAnswer.model_validate(made)


@router.post("/renew")
def renew(body: RenewRequest, context: Context) -> RenewalAnswer:
    """The next certificate for whoever proves to hold the key of the last one, which may have ended."""
    with context.database.transaction() as session:
        made = enrollment.renew(session, context, certificate=body.certificate, csr=body.csr, signature=body.signature)
    return RenewalAnswer.model_validate(made)
