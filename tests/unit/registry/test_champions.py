"""The champion ledger: order, history, refusals, append-only. A database in memory, releases that never existed."""

from __future__ import annotations

import pytest

from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.registry import champions
from skerry_server.store.database import Database
from skerry_server.store.tables import AuditRow, Base, ChampionEntry, Job, Release


@pytest.fixture
def database() -> Database:
    made = Database("sqlite://")
    Base.metadata.create_all(made.engine)
    with made.transaction() as session:
        for sequence, (identifier, task, state) in enumerate(
            [("r1", "digits", "available"), ("r2", "digits", "available"), ("h1", "har", "available"),
             ("old", "digits", "withdrawn")],
            start=1,
        ):  # fmt: skip
            session.add(
                Release(
                    id=identifier,
                    task=task,
                    sequence=sequence,
                    state=state,
                    candidate_id="c",
                    origin="central",
                    bundle_sha256="0" * 64,
                    envelope=b"",
                    metrics={},
                    created_ms=0,
                )
            )
    return made


def test_each_task_has_its_own_history(database: Database) -> None:
    with database.transaction() as session:
        assert champions.champion(session, "digits") is None
        for task, release_id in (("digits", "r1"), ("har", "h1"), ("digits", "r2"), ("digits", "r1")):
            champions.promote(session, task=task, release_id=release_id, reason="good")
    with database.reading() as session:
        assert [(e.release_id, e.previous_release) for e in champions.history(session, "digits")] == [
            ("r1", ""), ("r2", "r1"), ("r1", "r2"),
        ]  # fmt: skip
        assert [e.release_id for e in champions.history(session, "har")] == ["h1"]
        newest = champions.champion(session, "digits")
        assert newest is not None
        assert newest.id == "r1"
        assert session.query(AuditRow).count() == 4
        assert session.query(Job).count() == 4


def test_who_was_champion_at_a_moment(database: Database) -> None:
    with database.transaction() as session:
        for at_ms, release_id in ((100, "r1"), (200, "r2")):
            session.add(ChampionEntry(task="digits", release_id=release_id, reason="x", at_ms=at_ms))
            session.flush()
        moments = [champions.champion_at(session, "digits", at_ms) for at_ms in (99, 100, 199, 200, 10**13)]
        assert moments == ["", "r1", "r1", "r2", "r2"]


def test_promoting_the_champion_again_changes_nothing(database: Database) -> None:
    with database.transaction() as session:
        first = champions.promote(session, task="digits", release_id="r1", reason="good")
        assert champions.promote(session, task="digits", release_id="r1", reason="again") is first
        assert (session.query(ChampionEntry).count(), session.query(AuditRow).count(), session.query(Job).count()) == (
            1,
        ) * 3


@pytest.mark.parametrize(
    ("task", "release_id", "reason", "error"),
    [
        ("digits", "r9", "good", NotFoundError),
        ("digits", "h1", "good", InvalidRequestError),
        ("digits", "r1", " ", InvalidRequestError),
        ("digits", "old", "good", ConflictError),
    ],
)
def test_what_cannot_be_champion_is_refused(
    database: Database, task: str, release_id: str, reason: str, error: type[Exception]
) -> None:
    with database.transaction() as session:
        with pytest.raises(error):
            champions.promote(session, task=task, release_id=release_id, reason=reason)
        assert (session.query(ChampionEntry).count(), session.query(AuditRow).count(), session.query(Job).count()) == (
            0,
        ) * 3


@pytest.mark.parametrize("change", ["rewrite", "delete"])
def test_entries_can_only_be_added(database: Database, change: str) -> None:
    with database.transaction() as session:
        champions.promote(session, task="digits", release_id="r1", reason="good")

    def tamper() -> None:
        with database.transaction() as session:
            entry = session.query(ChampionEntry).one()
            if change == "rewrite":
                entry.release_id = "r2"
            else:
                session.delete(entry)

    with pytest.raises(RuntimeError, match="append-only"):
        tamper()
    with database.reading() as session:
        assert session.query(ChampionEntry).one().release_id == "r1"
