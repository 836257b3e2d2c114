"""What a caller is told when a call fails. Pure; REST and gRPC share it.

Every known error becomes a :class:`Problem` whose ``kind`` decides the HTTP status and the gRPC code. An unknown one
is a defect of ours: the caller learns a reference that also stands in the log, and nothing else.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from skerry_contract.errors import SignatureError, WireError
from skerry_server.api.access import ForbiddenError, UnauthenticatedError
from skerry_server.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    RefusedError,
    RequestError,
)

Kind = Literal[
    "malformed",
    "unauthenticated",
    "forbidden",
    "not-found",
    "method-not-allowed",
    "conflict",
    "too-large",
    "invalid",
    "unavailable",
    "internal",
]

#: HTTP status of each kind.
HTTP_STATUS: dict[Kind, int] = {
    "malformed": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "conflict": 409,
    "too-large": 413,
    "invalid": 422,
    "unavailable": 503,
    "internal": 500,
}

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One failed call.

    Attributes:
        kind: What is wrong, one of the keys of :data:`HTTP_STATUS`.
        message: One sentence for a person.
        field: Which field of the request, or what was looked for ("device"); empty where it does not apply.
        expected: What would have been right.
        got: What came, at most 200 characters.
    """

    kind: Kind
    message: str
    field: str = ""
    expected: str = ""
    got: str = ""

    @property
    def status(self) -> int:
        """HTTP status."""
        return HTTP_STATUS[self.kind]

    def fields(self) -> list[tuple[str, str]]:
        """Kind, field, expected and got, as far as they are known."""
        named = [("kind", self.kind), ("field", self.field), ("expected", self.expected), ("got", self.got)]
        return [(name, text) for name, text in named if text]

    def document(self) -> dict[str, dict[str, str]]:
        """The body of the answer: ``{"error": {...}}``."""
        return {
            "error": {
                "kind": self.kind,
                "message": self.message,
                "field": self.field,
                "expected": self.expected,
                "got": self.got,
            }
        }


def describe(error: BaseException) -> Problem:
    """Translate an exception; one that nobody foresaw is logged with its traceback and a reference."""
    match error:
        case InvalidRequestError() | WireError():
            return Problem("invalid", str(error), error.field, error.expected, str(error.got))
        case NotFoundError():
            return Problem("not-found", str(error), error.kind, f"an existing {error.kind}", error.identifier)
        case ConflictError():
            return Problem("conflict", str(error))
        case UnauthenticatedError():
            return Problem("unauthenticated", str(error), "authorization", "Bearer <token>")
        case ForbiddenError():
            return Problem("forbidden", str(error), "authorization", f"role {error.needed} or higher", error.role)
        case RefusedError():
            return Problem("forbidden", str(error))
        case SignatureError():
            return Problem("invalid", str(error), error.kind, "a trusted signature", error.reason)
        case PlatformError():
            return Problem("unavailable", str(error), error.what, error.remedy)
        case RequestError():
            return Problem("malformed", str(error))
        case SQLAlchemyError():
            _LOGGER.error("the store failed", exc_info=error)
            return Problem("unavailable", "the store cannot answer now; try again")
        case _:
            reference = secrets.token_hex(4)
            _LOGGER.error("unexpected failure, reference %s", reference, exc_info=error)
            return Problem("internal", f"the control plane failed; its log has the cause under reference {reference}")
