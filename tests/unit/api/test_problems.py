from __future__ import annotations

import logging

import pytest
from sqlalchemy.exc import OperationalError

from skerry_contract.errors import WireError
from skerry_server.api.access import ForbiddenError, UnauthenticatedError
from skerry_server.api.problems import describe
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, PlatformError, RequestError
from skerry_server.rpc.status import STATUS


@pytest.mark.parametrize(
    ("error", "status", "kind", "field", "code"),
    [
        (InvalidRequestError("rounds", expected="1 to 9", got=10), 422, "invalid", "rounds", "INVALID_ARGUMENT"),
        (WireError("name", expected="a-z", got="Ä"), 422, "invalid", "name", "INVALID_ARGUMENT"),
        (NotFoundError("device", "press-01"), 404, "not-found", "device", "NOT_FOUND"),
        (ConflictError("it is finished"), 409, "conflict", "", "FAILED_PRECONDITION"),
        (UnauthenticatedError("no"), 401, "unauthenticated", "authorization", "UNAUTHENTICATED"),
        (ForbiddenError(role="viewer", needed="admin"), 403, "forbidden", "authorization", "PERMISSION_DENIED"),
        (PlatformError("disk full", remedy="free some"), 503, "unavailable", "disk full", "UNAVAILABLE"),
        (OperationalError("SELECT 1", {}, Exception("locked")), 503, "unavailable", "", "UNAVAILABLE"),
        (RequestError("no"), 400, "malformed", "", "INVALID_ARGUMENT"),
        (ZeroDivisionError("secret"), 500, "internal", "", "INTERNAL"),
    ],
)
def test_every_family_has_its_status_and_code(error: Exception, status: int, kind: str, field: str, code: str) -> None:
    problem = describe(error)
    assert (problem.status, problem.kind, problem.field) == (status, kind, field)
    assert STATUS[problem.kind].name == code
    assert set(problem.document()["error"]) == {"kind", "message", "field", "expected", "got"}


def test_a_defect_is_told_by_a_reference_that_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        problem = describe(ZeroDivisionError("the secret of the store"))
    assert "secret" not in problem.message
    reference = problem.message.rsplit(" ", 1)[1]
    assert reference in caplog.text
    assert "the secret of the store" in caplog.text  # there, where the operator can see it


def test_sql_is_never_told() -> None:
    problem = describe(OperationalError("SELECT token FROM api_tokens", {}, Exception("locked")))
    assert "SELECT" not in str(problem.document())
