"""How the device API tells what is wrong: problem details (RFC 9457) with the field, what was expected, what came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from skerry_contract.errors import ContractError
from skerry_server.api.problems import Problem, describe
from skerry_server.errors import SkerryError

MEDIA_TYPE = "application/problem+json"


def document(status: int, detail: str, members: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The members of a problem; those that are empty are left out."""
    known = {name: text for name, text in (members or {}).items() if text}
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **known}


def answer(status: int, detail: str, members: Mapping[str, str] | None = None) -> Response:
    """The response with such a body."""
    body = json.dumps(document(status, detail, members)).encode()
    return Response(body, status_code=status, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have an application answer like this."""
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    for family in (SkerryError, ContractError, SQLAlchemyError, Exception):
        app.add_exception_handler(family, _tell)


async def _tell(_request: Request, error: Exception) -> Response:
    return _of(describe(error))


async def _tell_http(_request: Request, error: Exception) -> Response:
    """Errors of the framework itself: no such path, no such method, a body that cannot be read."""
    status = getattr(error, "status_code", 500)
    return answer(status, str(getattr(error, "detail", "")) or "the request cannot be carried out")


async def _tell_invalid(_request: Request, error: Exception) -> Response:
    """The first of the fields that pydantic refused; what came may be a secret, so it is not repeated."""
    first: dict[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    field = ".".join(str(part) for part in first.get("loc", ())[1:] if part != "[key]")[:200] or "body"
    expected = str(first.get("msg", "another value"))
    return answer(422, f"{field}: {expected}", {"field": field, "expected": expected})


def _of(problem: Problem) -> Response:
    members = {"field": problem.field, "expected": problem.expected, "got": problem.got}
    return answer(problem.status, problem.message, members)
