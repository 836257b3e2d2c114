"""Puts the HTTP application together: routes, console, middleware, and how errors are told.

>>> app = create_app(open_context(Path("/var/lib/skerry")))  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from skerry_contract.errors import ContractError
from skerry_server import console
from skerry_server.api import overview
from skerry_server.api.changes import ChangeFeed
from skerry_server.api.limits import BodyLimit, HardenedHeaders
from skerry_server.api.metrics import RequestCounter
from skerry_server.api.problems import HTTP_STATUS, Kind, Problem, describe
from skerry_server.api.routes import campaigns, fitness, fleet, governance, learning, live, releases
from skerry_server.context import ServerContext
from skerry_server.errors import SkerryError

_DESCRIPTION = """\
Fleet of devices, federated campaigns, signed releases, rollouts, drift and incidents.

Every call but `GET /healthz` needs `authorization: Bearer <token>`. Roles: viewer, operator,
approver, admin; each includes the ones before. Every failure has the body
`{"error": {"kind", "message", "field", "expected", "got"}}`. Lists come in pages: send `next_page_token` back as
`page_token`. Moments (`*_ms`) are milliseconds since 1970 UTC.
"""
_TAGS = [
    {"name": "fleet", "description": "Enrolment tokens, devices and cohorts."},
    {"name": "learning", "description": "Tasks, central trainings, jobs and federated campaigns."},
    {"name": "releases", "description": "Candidates, releases, champions and rollouts."},
    {"name": "governance", "description": "Incidents, policies, the audit ledger and API tokens."},
    {"name": "live", "description": "Summary, drift, changes as they happen, health and metrics."},
]


def create_app(context: ServerContext) -> FastAPI:
    """The REST API and the console over one context; the caller closes the context afterwards."""
    app = FastAPI(
        title="Skerry",
        version=overview.version(),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their pages load scripts from a CDN
        redoc_url=None,
        lifespan=_lifespan,
    )
    bind(app, context)
    for module in (fleet, learning, campaigns, releases, fitness, governance, live):
        app.include_router(module.router)
    console.mount(app)
    app.middleware("http")(_count_requests)
    app.add_middleware(BodyLimit)
    app.add_middleware(HardenedHeaders)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    for family in (SkerryError, ContractError, SQLAlchemyError, Exception):
        app.add_exception_handler(family, _tell)
    return app


def bind(app: FastAPI, context: ServerContext) -> None:
    """Make an application that does not serve yet work with a context."""
    app.state.context = context
    app.state.changes = ChangeFeed(context.database)
    app.state.requests = RequestCounter()


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.changes.close()


async def _count_requests(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    started = time.monotonic()
    status = 500
    try:
        response = await call_next(request)
        status = response.status_code
    finally:
        route = request.scope.get("route")
        request.app.state.requests.count(request.method, getattr(route, "path", "unmatched"), status)
    response.headers["server-timing"] = f"app;dur={(time.monotonic() - started) * 1000:.1f}"
    return response


def _answer(problem: Problem) -> JSONResponse:
    headers = {"www-authenticate": "Bearer"} if problem.kind == "unauthenticated" else None
    return JSONResponse(problem.document(), status_code=problem.status, headers=headers)


async def _tell(_request: Request, error: Exception) -> Response:
    return _answer(describe(error))


async def _tell_http(_request: Request, error: Exception) -> Response:
    """Errors of the framework itself: no such path, no such method, a body that cannot be read."""
    status = getattr(error, "status_code", 500)
    kinds: dict[int, Kind] = {status: kind for kind, status in HTTP_STATUS.items()}
    kind = kinds.get(status, "malformed" if status < 500 else "internal")
    return _answer(Problem(kind, str(getattr(error, "detail", "")) or "the request cannot be carried out"))


async def _tell_invalid(_request: Request, error: Exception) -> Response:
    """The first of the fields that pydantic refused."""
    first: dict[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    location = [str(part) for part in first.get("loc", ())]
    expected = str(first.get("msg", "")).removeprefix("Value error, ")
    if first.get("type") == "json_invalid":
        return _answer(Problem("malformed", f"the body is not JSON: {expected}", "body", "JSON"))
    field = ".".join(part for part in location[1:] if part != "[key]") or (location[0] if location else "body")
    expected = _EXPECTED.get(str(first.get("type")), expected)
    got = "nothing" if first.get("type") == "missing" else repr(first.get("input"))[:200]
    return _answer(Problem("invalid", f"{field}: expected {expected}, got {got}", field[:200], expected, got))


#: Kinder words than pydantic's for its commonest refusals.
_EXPECTED = {"missing": "a value", "extra_forbidden": "no such field", "json_type": "JSON"}
