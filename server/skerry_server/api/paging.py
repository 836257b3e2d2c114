"""Pages of a list: keyset pagination with opaque tokens. Pure but for the one query of :func:`fetch_page`.

A token holds the sort key of the last row that was sent and a digest of the list and its filters, so that a token of
one list cannot be used on another one. Rows that appear or vanish between two pages neither repeat nor hide others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.errors import InvalidRequestError

#: Rows of a page that does not say how many it wants, and the most it may ask for.
DEFAULT_PAGE_SIZE = 100
MAXIMUM_PAGE_SIZE = 500
#: Longest token and longest filter value that is looked at (characters).
TOKEN_CHARACTERS = 1024
FILTER_CHARACTERS = 200

Row = TypeVar("Row")
Condition = sa.ColumnElement[bool]
#: From the text of a filter to a condition; raises InvalidRequestError on bad text.
Filter = Callable[[Session, str], Condition]


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows, and the token that asks for the next ones (empty at the end)."""

    items: Sequence[Row]
    next_page_token: str


@dataclass(frozen=True)
class Listing(Generic[Row]):
    """How a table is listed.

    Attributes:
        name: Name of the list; part of its tokens.
        table: Mapped class.
        key: Columns that together are unique, most significant first; the order of the list.
        filters: What each filter means, by its name.
        newest_first: Whether the order is descending.
    """

    name: str
    table: type[Row]
    key: tuple[sa.ColumnElement[Any], ...]
    filters: Mapping[str, Filter]
    newest_first: bool = False


def fetch_page(
    session: Session,
    listing: Listing[Row],
    *,
    page_size: int = 0,
    page_token: str = "",
    filters: Mapping[str, str] | None = None,
) -> Page[Row]:
    """Read one page.

    Args:
        session: A session to read with.
        listing: Which list.
        page_size: 1 to 500; 0 means 100.
        page_token: Empty for the first page, else what the page before gave.
        filters: Filter name to text; every one must hold.

    Raises:
        InvalidRequestError: A size out of range, an unknown filter, bad filter text, or a token of another list.
    """
    if not 0 <= page_size <= MAXIMUM_PAGE_SIZE:
        raise InvalidRequestError("page_size", expected=f"1 to {MAXIMUM_PAGE_SIZE}", got=page_size)
    size = page_size or DEFAULT_PAGE_SIZE
    wanted = dict(filters or {})
    query = sa.select(listing.table)
    for name, text in sorted(wanted.items()):
        condition = listing.filters.get(name)
        if condition is None:
            known = ", ".join(sorted(listing.filters)) or "no filter"
            raise InvalidRequestError(f"filter.{name}"[:80], expected=f"one of: {known}", got=name)
        if len(text) > FILTER_CHARACTERS:
            raise InvalidRequestError(f"filter.{name}", expected=f"at most {FILTER_CHARACTERS} characters", got=text)
        query = query.where(condition(session, text))
    scope = _scope(listing.name, wanted)
    key = sa.tuple_(*listing.key)
    if page_token:
        kinds = [column.type.python_type for column in listing.key]
        after = sa.tuple_(*(sa.literal(part) for part in decode_token(page_token, scope=scope, kinds=kinds)))
        query = query.where(key < after if listing.newest_first else key > after)
    order = [column.desc() if listing.newest_first else column.asc() for column in listing.key]
    rows = session.scalars(query.order_by(*order).limit(size + 1)).all()
    if len(rows) <= size:
        return Page(rows, "")
    last = [getattr(rows[size - 1], column.key or "") for column in listing.key]
    return Page(rows[:size], encode_token(last, scope=scope))


def encode_token(key: Sequence[str | int], *, scope: str) -> str:
    """A token for "after the row with this sort key"."""
    document = json.dumps([scope, *key], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def decode_token(token: str, *, scope: str, kinds: Sequence[type]) -> list[str | int]:
    """The sort key of a token.

    Raises:
        InvalidRequestError: It was not made by :func:`encode_token` for this list and these filters.
    """
    wrong = InvalidRequestError("page_token", expected="next_page_token of the same list and filters", got=token)
    if len(token) > TOKEN_CHARACTERS or not token.isascii():
        raise wrong
    try:
        document = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(document, list) or len(document) != len(kinds) + 1 or document[0] != scope:
        raise wrong
    key = document[1:]
    if any(type(part) is not kind for part, kind in zip(key, kinds, strict=True)):
        raise wrong
    if any(isinstance(part, int) and abs(part) >= 1 << 63 for part in key):
        raise wrong
    return key


def _scope(name: str, filters: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([name, sorted(filters.items())]).encode()).hexdigest()[:12]
