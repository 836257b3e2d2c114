"""The client against a control plane that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from skerry_server.api.access import ForbiddenError, UnauthenticatedError
from skerry_server.api.problems import Problem, describe
from skerry_server.cli.client import ApiClient
from skerry_server.cli.output import Output
from skerry_server.cli.waiting import FailedError, wait_for
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, PlatformError, SkerryError


def _client(answer: Callable[[httpx.Request], httpx.Response]) -> ApiClient:
    return ApiClient("http://control.example", "t", transport=httpx.MockTransport(answer))


def _failing(problem: Problem) -> ApiClient:
    return _client(lambda _: httpx.Response(problem.status, json=problem.document()))


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("device", "press-01"),
        ConflictError("it is finished"),
        InvalidRequestError("rounds", expected="1 to 9", got=10),
        UnauthenticatedError("this API token is not valid"),
        ForbiddenError(role="viewer", needed="admin"),
    ],
)
def test_an_error_of_the_server_is_the_same_error_here(error: SkerryError) -> None:
    with pytest.raises(type(error)) as told:
        _failing(describe(error)).get("devices")
    assert str(told.value).startswith(str(error))
    named = {name: value for name, value in vars(error).items() if name != "reason"}
    assert {name: vars(told.value)[name] for name in named} == named


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.Response(500, json={"error": "no"}),
        httpx.Response(503, json=Problem("unavailable", "the store cannot answer").document()),
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(200, json=["not", "an", "object"]),
    ],
)
def test_an_answer_that_is_none_is_a_platform_error(answer: httpx.Response) -> None:
    with pytest.raises(PlatformError):
        _client(lambda _: answer).get("devices")


def test_identifiers_cannot_leave_their_place_in_the_path() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    _client(answer).get("devices", "../api-tokens?x=1#y")
    assert asked == ["/v1/devices/..%2Fapi-tokens%3Fx%3D1%23y"]


def test_a_list_is_read_page_by_page_and_no_further_than_asked() -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        size, token = request.url.params["page_size"], request.url.params.get("page_token", "")
        asked.append((size, token))
        start = int(token or 0)
        items = [{"id": number} for number in range(start, start + int(size))]
        return httpx.Response(200, json={"items": items, "next_page_token": str(start + int(size))})

    rows = _client(answer).items("devices", limit=450)
    assert [row["id"] for row in rows] == list(range(450))
    assert asked == [("200", ""), ("200", "200"), ("50", "400")]


def test_waiting_bears_a_control_plane_that_restarts() -> None:
    away = PlatformError("away", remedy="")
    answers: Iterator[dict[str, int] | PlatformError] = iter([{"n": 1}, away, away, {"n": 2}])

    def look() -> dict[str, int]:
        answer = next(answers)
        if isinstance(answer, PlatformError):
            raise answer
        return answer

    done = wait_for(
        look,
        ended=lambda row: row["n"] == 2,
        describe=lambda row: str(row["n"]),
        what="it",
        timeout_s=30,
        out=Output(as_json=True),
    )
    assert done == {"n": 2}


def test_waiting_ends_at_once_when_the_thing_is_gone() -> None:
    def look() -> dict[str, int]:
        raise NotFoundError("job", "job-1")

    with pytest.raises(NotFoundError):
        wait_for(look, ended=bool, describe=str, what="it", timeout_s=30, out=Output(as_json=True))


def test_a_deadline_names_what_was_last_seen() -> None:
    with pytest.raises(FailedError, match=r"it has not ended within 0\.1 s; it goes on \(still 1\)"):
        wait_for(
            lambda: {"n": 1},
            ended=lambda _: False,
            describe=lambda row: f"still {row['n']}",
            what="it",
            timeout_s=0.1,
            out=Output(as_json=True),
        )
