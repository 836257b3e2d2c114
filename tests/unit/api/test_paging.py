from __future__ import annotations

import base64
import json

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from skerry_server.api import queries
from skerry_server.api.paging import decode_token, encode_token, fetch_page
from skerry_server.errors import InvalidRequestError
from skerry_server.store import Database
from skerry_server.store.tables import Base, Job

SCOPE = "0123456789ab"
_KEYS = st.tuples(st.integers(-(2**62), 2**62), st.text(max_size=60))


@given(_KEYS)
def test_a_token_gives_back_its_key(key: tuple[int, str]) -> None:
    assert decode_token(encode_token(key, scope=SCOPE), scope=SCOPE, kinds=[int, str]) == list(key)


@given(st.text(max_size=600))
def test_any_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as told:
        decode_token(text, scope=SCOPE, kinds=[int, str])
    assert told.value.field == "page_token"


@pytest.mark.parametrize(
    "document",
    [
        ["another-list", 1, "a"],
        [SCOPE, 1],
        [SCOPE, "1", "a"],
        [SCOPE, True, "a"],
        [SCOPE, 1, None],
        [SCOPE, 1 << 63, "a"],
        {"scope": SCOPE},
    ],
)
def test_well_formed_tokens_of_something_else_are_refused(document: object) -> None:
    token = base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
    with pytest.raises(InvalidRequestError):
        decode_token(token, scope=SCOPE, kinds=[int, str])


@pytest.fixture
def session() -> Session:
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    session = Session(database.engine)
    for index in range(7):
        # Three share a moment: the identifier has to break the tie.
        session.add(Job(id=f"job-{index}", kind="train", payload={}, state="queued", created_ms=100 + index // 3))
    session.flush()
    return session


def _walk(session: Session, size: int) -> list[str]:
    seen: list[str] = []
    token = ""
    while True:
        page = fetch_page(session, queries.JOBS, page_size=size, page_token=token)
        assert len(page.items) <= size
        seen += [row.id for row in page.items]
        token = page.next_page_token
        if not token:
            return seen


@pytest.mark.parametrize("size", [1, 2, 3, 7, 500])
def test_pages_of_any_size_show_every_row_once_newest_first(session: Session, size: int) -> None:
    assert _walk(session, size) == [f"job-{index}" for index in (6, 5, 4, 3, 2, 1, 0)]


def test_rows_that_come_and_go_between_pages_neither_repeat_nor_hide_others(session: Session) -> None:
    first = fetch_page(session, queries.JOBS, page_size=3)
    session.add(Job(id="job-new", kind="train", payload={}, state="queued", created_ms=999))
    session.execute(sa.delete(Job).where(Job.id == first.items[-1].id))
    second = fetch_page(session, queries.JOBS, page_size=500, page_token=first.next_page_token)
    assert [row.id for row in second.items] == ["job-3", "job-2", "job-1", "job-0"]


def test_a_token_is_bound_to_its_filters(session: Session) -> None:
    token = fetch_page(session, queries.JOBS, page_size=1, filters={"state": "queued"}).next_page_token
    with pytest.raises(InvalidRequestError, match="page_token"):
        fetch_page(session, queries.JOBS, page_token=token)
    with pytest.raises(InvalidRequestError, match="page_token"):
        fetch_page(session, queries.CANDIDATES, page_token=token, filters={"state": "queued"})


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"page_size": 501}, "page_size"),
        ({"page_size": -1}, "page_size"),
        ({"filters": {"colour": "red"}}, "filter.colour"),
        ({"filters": {"state": "x" * 201}}, "filter.state"),
    ],
)
def test_bad_arguments_name_their_field(session: Session, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequestError) as told:
        fetch_page(session, queries.JOBS, **arguments)  # type: ignore[arg-type]
    assert told.value.field == field
