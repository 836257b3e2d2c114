"""Authentication and errors of gRPC calls: what REST tells by HTTP status, told by status codes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import grpc

from skerry_server.api.access import Principal, Role
from skerry_server.api.identity import authenticate
from skerry_server.api.problems import Kind, describe
from skerry_server.context import ServerContext

Reply = TypeVar("Reply")

#: gRPC status of each kind of problem.
STATUS: Mapping[Kind, Any] = {
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not-found": grpc.StatusCode.NOT_FOUND,
    "method-not-allowed": grpc.StatusCode.UNIMPLEMENTED,
    "conflict": grpc.StatusCode.FAILED_PRECONDITION,
    "too-large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "internal": grpc.StatusCode.INTERNAL,
}


class Servicer:
    """Base of the services: holds the context."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context


def call(needed: Role) -> Callable[[Callable[[Any, Any, Principal], Reply]], Callable[[Any, Any, Any], Reply]]:
    """Make a gRPC method of ``method(self, request, caller)``: checks the token and the role, tells errors."""

    def decorate(method: Callable[[Any, Any, Principal], Reply]) -> Callable[[Any, Any, Any], Reply]:
        @functools.wraps(method)
        def handle(self: Servicer, request: Any, context: Any) -> Reply:
            try:
                metadata = dict(context.invocation_metadata())
                with self.context.database.reading() as session:
                    caller = authenticate(session, metadata.get("authorization"))
                caller.require(needed)
                return method(self, request, caller)
            except Exception as error:
                problem = describe(error)
            # Raises, which ends the call.
            context.set_trailing_metadata(
                tuple((f"skerry-{name}", text.encode("ascii", "replace").decode()) for name, text in problem.fields())
            )
            context.abort(STATUS[problem.kind], problem.message)
            raise AssertionError("abort returned")

        return handle

    return decorate
