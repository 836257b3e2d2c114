"""Which device calls: the one whose certificate the TLS connection has, unless it is revoked.

>>> @router.get("/device/v1/thing")  # doctest: +SKIP
... def thing(device_id: Caller) -> dict[str, str]: ...
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from skerry_server.context import ServerContext
from skerry_server.device_api.tls import presented_certificate
from skerry_server.errors import InvalidRequestError, RefusedError
from skerry_server.fleet import enrollment
from skerry_server.fleet.authority import CertificateAuthority


def context_of(request: Request) -> ServerContext:
    """The context that the application was made with."""
    context: ServerContext = request.app.state.context
    return context


def calling_device(request: Request) -> str:
    """Name of the device that calls.

    Raises:
        RefusedError: No certificate, one that is not a device's, or one that is revoked or replaced.
    """
    certificate_pem = presented_certificate(request.scope)
    if not certificate_pem:
        raise RefusedError("this needs the certificate of a device")
    authority: CertificateAuthority = request.app.state.authority
    try:
        certificate = authority.check_issued(certificate_pem.encode())
    except InvalidRequestError as error:
        raise RefusedError("this needs the certificate of a device") from error
    with context_of(request).database.reading() as session:
        return enrollment.current_device(session, certificate).id


Context = Annotated[ServerContext, Depends(context_of)]
Caller = Annotated[str, Depends(calling_device)]
