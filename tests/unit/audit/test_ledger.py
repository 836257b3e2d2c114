"""The hash chain, computed by hand once, and then tampered with in every way."""

from __future__ import annotations

import hashlib

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.audit import ledger
from skerry_server.store.database import Database
from skerry_server.store.tables import AuditRow, Base


@pytest.fixture
def database() -> Database:
    made = Database("sqlite://")
    Base.metadata.create_all(made.engine)
    return made


def _fill(session: Session, count: int) -> None:
    for number in range(1, count + 1):
        ledger.append(session, actor="ada", action="cohort.create", subject=f"c{number}", detail={"n": number})


def test_the_hash_is_the_documented_one(database: Database) -> None:
    with database.transaction() as session:
        row = ledger.append(session, actor="ada", action="a.b", subject="s", detail={"z": 1, "ä": [None, 0.5]})
        document = (
            f'{{"action":"a.b","actor":"ada","at_ms":{row.at_ms},"detail":{{"z":1,"ä":[null,0.5]}},'
            f'"previous_hash":"{"0" * 64}","sequence":1,"subject":"s"}}'
        )
        assert row.hash == hashlib.sha256(document.encode()).hexdigest()
        assert ledger.head(session) == (1, row.hash)


def test_an_honest_chain_holds_over_several_transactions_and_pages(database: Database) -> None:
    with database.transaction() as session:
        assert ledger.verify(session) is None
        assert ledger.head(session) == (0, "0" * 64)
    for _ in range(2):
        with database.transaction() as session:
            _fill(session, 600)
    with database.reading() as session:
        assert ledger.verify(session) is None
        assert ledger.head(session)[0] == 1200


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE sequence = 3", 3),
        ("UPDATE audit SET detail = '{\"n\": 4}' WHERE sequence = 3", 3),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE sequence = 1", 1),
        ("DELETE FROM audit WHERE sequence = 2", 2),
        ("DELETE FROM audit WHERE sequence = 1", 1),
        ("UPDATE audit SET hash = 'x' || substr(hash, 2) WHERE sequence = 5", 5),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 5", 5),
        ("UPDATE audit SET sequence = -1 WHERE sequence = 5", 1),
        (
            "INSERT INTO audit SELECT 0, at_ms, actor, action, subject, detail, previous_hash, hash "
            "FROM audit WHERE sequence = 1",
            1,
        ),
    ],
)
def test_tampering_is_found_at_the_entry(database: Database, statement: str, broken: int) -> None:
    with database.transaction() as session:
        _fill(session, 5)
    with database.transaction() as session:
        session.execute(sa.text(statement))
    with database.reading() as session:
        assert ledger.verify(session) == broken


def test_an_entry_that_was_changed_together_with_its_hash_breaks_the_next(database: Database) -> None:
    with database.transaction() as session:
        _fill(session, 3)
        row = session.get_one(AuditRow, 2)
        row.actor = "eve"
        row.hash = ledger._hash(row)
    with database.reading() as session:
        assert ledger.verify(session) == 3


def test_an_entry_is_written_only_with_the_change_it_tells_of(database: Database) -> None:
    def change() -> None:
        with database.transaction() as session:
            _fill(session, 1)
            raise RuntimeError("something fails later")

    with pytest.raises(RuntimeError, match="later"):
        change()
    with database.reading() as session:
        assert ledger.head(session) == (0, "0" * 64)


@pytest.mark.parametrize("detail", [{"x": float("nan")}, {"x": object()}, {"x": b"bytes"}])
def test_what_json_cannot_carry_is_refused(database: Database, detail: dict[str, object]) -> None:
    with database.transaction() as session:
        _fill(session, 1)
        before = ledger.head(session)
        with pytest.raises(ValueError, match=r"JSON|float"):
            ledger.append(session, actor="ada", action="a.b", subject="s", detail=detail)
        assert ledger.head(session) == before
