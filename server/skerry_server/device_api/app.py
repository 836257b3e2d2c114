"""Puts the device API together: routes, bounds, and how errors are told."""

from __future__ import annotations

from fastapi import FastAPI

from skerry_server.context import ServerContext
from skerry_server.device_api import files, problems, routes, site
from skerry_server.device_api.limits import BodyBounds
from skerry_server.fleet.authority import CertificateAuthority


def create_device_app(context: ServerContext) -> FastAPI:
    """The device API over one context; the caller closes the context afterwards.

    Raises:
        PlatformError: The certificate authority cannot be read.
    """
    app = FastAPI(title="Skerry device API", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.context = context
    app.state.authority = CertificateAuthority.load(context.layout.pki)
    app.include_router(routes.router)
    app.include_router(files.router)
    app.include_router(site.router)
    app.add_middleware(BodyBounds)
    problems.install(app)
    return app
