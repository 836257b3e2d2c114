"""What routes ask for: the server's context, the caller (with enough of a role), the standard answers of failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from skerry_server.api.access import Principal, Role
from skerry_server.api.documents import Problem
from skerry_server.api.identity import authenticate
from skerry_server.context import ServerContext

#: Declares the scheme in the OpenAPI document; the header itself is read by ``authenticate``.
_BEARER = HTTPBearer(auto_error=False, description="An API token of `skerry token create`.", scheme_name="token")
_Declared = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]


def server_context(request: Request) -> ServerContext:
    """The context that the application was made with."""
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(server_context)]


def _caller(role: Role) -> Callable[..., Principal]:
    def caller(request: Request, context: Context, _declared: _Declared) -> Principal:
        with context.database.reading() as session:
            principal = authenticate(session, request.headers.get("authorization"))
        principal.require(role)
        return principal

    return caller


def _requires(role: Role) -> Any:
    return Depends(_caller(role))


#: The caller, who has at least this role.
Viewer = Annotated[Principal, _requires("viewer")]
Operator = Annotated[Principal, _requires("operator")]
Approver = Annotated[Principal, _requires("approver")]
Admin = Annotated[Principal, _requires("admin")]

#: Documented answers of failure, for `responses=`.
READ: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or one that is not valid."},
    403: {"model": Problem, "description": "The token's role does not reach."},
    422: {"model": Problem, "description": "A field of the request is wrong."},
    503: {"model": Problem, "description": "The machine lacks something; try again."},
}
SHOW: dict[int | str, dict[str, Any]] = READ | {404: {"model": Problem, "description": "There is no such thing."}}
ACT: dict[int | str, dict[str, Any]] = SHOW | {
    400: {"model": Problem, "description": "The body is not JSON."},
    409: {"model": Problem, "description": "It is in a state in which this cannot be done."},
    413: {"model": Problem, "description": "The body is too large."},
}


def beside_another_type(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The same failures for a route that answers something else than JSON; its failures are JSON all the same."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": entry["description"], "content": content} for status, entry in responses.items()}
