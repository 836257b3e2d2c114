"""An append-only ledger in which every entry carries the hash of the one before.

``hash = SHA-256(canonical JSON of {sequence, at_ms, actor, action, subject, detail, previous_hash})`` with sorted keys
and no spaces; sequences start at 1 and have no gaps; the first entry's previous hash is 64 zeros. Changing, removing
or inserting an entry therefore breaks every later one. Cutting entries off the end leaves a valid, shorter chain:
whoever must exclude that keeps :func:`head` somewhere else.

>>> from skerry_server.store import Database
>>> from skerry_server.store.tables import Base
>>> database = Database("sqlite://")
>>> Base.metadata.create_all(database.engine)
>>> with database.transaction() as session:
...     entry = append(session, actor="ada", action="cohort.create", subject="all", detail={})
...     (entry.sequence, verify(session))
(1, None)
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.clock import now_ms
from skerry_server.errors import InvalidRequestError
from skerry_server.store.tables import AuditRow

#: What the first entry carries in place of a predecessor's hash.
GENESIS = "0" * 64
#: Entries that are read at a time by :func:`verify`.
_PAGE = 1000


def check_reason(reason: str) -> None:
    """Pass if a decision that must be justified says why; raises InvalidRequestError for the field ``reason``."""
    if not reason.strip():
        raise InvalidRequestError("reason", expected="a reason", got=reason)


def append(session: Session, *, actor: str, action: str, subject: str, detail: dict[str, Any]) -> AuditRow:
    """Add an entry to the transaction of ``session``; it is written if and only if the change it tells of is.

    Args:
        session: An open transaction.
        actor: Who did it: an API token's name, ``policy:<name>``, ``device:<id>`` or ``system``.
        action: What was done, ``<noun>.<verb>``.
        subject: Identifier of what it was done to.
        detail: Anything that JSON can carry.

    Raises:
        ValueError: ``detail`` is not JSON (a NaN, an object of some class); nothing is added.
    """
    try:
        document = json.loads(_canonical(detail))
    except TypeError as error:
        raise ValueError(f"audit detail must be JSON: {error}") from error
    if session.get_bind().dialect.name == "postgresql":
        # SQLite's transactions begin immediate; PostgreSQL's must be told that there is one writer at a time.
        session.execute(sa.text("LOCK TABLE audit IN EXCLUSIVE MODE"))
    sequence, previous_hash = head(session)
    row = AuditRow(
        sequence=sequence + 1,
        at_ms=now_ms(),
        actor=actor,
        action=action,
        subject=subject,
        detail=document,
        previous_hash=previous_hash,
    )
    row.hash = _hash(row)
    session.add(row)
    session.flush()
    return row


def head(session: Session) -> tuple[int, str]:
    """Sequence and hash of the newest entry; (0, 64 zeros) while there is none."""
    newest = session.execute(
        sa.select(AuditRow.sequence, AuditRow.hash).order_by(AuditRow.sequence.desc()).limit(1)
    ).one_or_none()
    return (0, GENESIS) if newest is None else (newest.sequence, newest.hash)


def verify(session: Session) -> int | None:
    """Walk the chain from its start.

    Returns:
        The first sequence at which the chain does not hold (a missing entry counts as broken), or ``None``.
    """
    if session.scalar(sa.select(sa.func.min(AuditRow.sequence)).where(AuditRow.sequence < 1)) is not None:
        return 1
    expected, previous_hash = 1, GENESIS
    while True:
        page = session.execute(
            sa.select(*AuditRow.__table__.columns)
            .where(AuditRow.sequence >= expected)
            .order_by(AuditRow.sequence)
            .limit(_PAGE)
        ).all()
        for row in page:
            if row.sequence != expected or row.previous_hash != previous_hash or row.hash != _hash(row):
                return expected
            expected, previous_hash = expected + 1, row.hash
        if len(page) < _PAGE:
            return None


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _hash(row: AuditRow | sa.Row[Any]) -> str:
    document = {
        "sequence": row.sequence,
        "at_ms": row.at_ms,
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "detail": row.detail,
        "previous_hash": row.previous_hash,
    }
    return hashlib.sha256(_canonical(document).encode()).hexdigest()
