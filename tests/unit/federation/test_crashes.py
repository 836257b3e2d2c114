"""A campaign that is killed at every single write of its journal, before it and after it, and then goes on.

The journal writes files and transactions; the kill comes at the n-th of them, for every n that a whole campaign has.
What must hold after each: the models are those of an undisturbed campaign, bit for bit, and at most one device trained
for nothing.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.store import Database
from skerry_server.store.tables import CampaignRound, CampaignUpdate
from unit.federation.fakes import FakeDevice
from unit.federation.world import KilledError, World


class Fuse:
    """Kills at the n-th write, before or after it; counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.at = -1
        self.after = False
        self.armed = False

    def arm(self, at: int, *, after: bool) -> None:
        """Kill at a write from now on, counted from 0; -1: only count."""
        self.armed, self.count, self.at, self.after = True, 0, at, after

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Around one write."""
        number, self.count = self.count, self.count + self.armed
        if self.armed and number == self.at and not self.after:
            raise KilledError
        yield
        if self.armed and number == self.at and self.after:
            raise KilledError


FUSE = Fuse()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: kills are exceptions here, so nothing depends on a disk."""
    FUSE.armed = False
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


class FusedDatabase(Database):
    """Transactions of the real store, with the fuse around each commit."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """See Database."""
        with FUSE.write(), super().transaction() as session:
            yield session


class FusedArtifacts(ArtifactStore):
    """The real artifact store, with the fuse around each write."""

    def put_bytes(self, data: bytes) -> str:
        """See ArtifactStore."""
        with FUSE.write():
            return super().put_bytes(data)


def world(folder: Path, strategy: str, **settings: Any) -> World:
    """Three devices that answer one after the other, each only when the one before was counted."""
    folder.mkdir()
    devices = [
        FakeDevice("a", 1, adds=0.1, examples=7, delay_s=0.1),
        FakeDevice("b", 2, adds=0.3, examples=30, delay_s=1.0),
        FakeDevice("c", 3, adds=0.7, examples=11, delay_s=2.0),
    ]
    return World(
        folder,
        devices,
        strategy=strategy,
        database=FusedDatabase,
        artifacts=FusedArtifacts,
        rounds=2,
        quorum=1.0,
        **settings,
    )


def models(made: World) -> list[str]:
    return [record.parameters_sha256 for record in made.journal.rounds()]


def training(made: World) -> int:
    """How often devices were asked to train."""
    return sum(len(device.wires) for device in made.devices)


CAMPAIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum, int8 up and down": ("fedavgm", {"wire": "int8", "down_wire": "int8"}),
    "buffered": ("fedbuff", {"mode": "buffered", "strategy_settings": {"buffer": 3}}),
}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_kill_at_any_write_changes_nothing_and_loses_one_update(tmp_path: Path, name: str) -> None:
    strategy, settings = CAMPAIGNS[name]
    whole = world(tmp_path / "whole", strategy, **settings)
    FUSE.arm(-1, after=False)
    whole.run().run()
    writes, expected, trained = FUSE.count, models(whole), training(whole)
    assert (len(expected), trained) == (2, 6)
    assert writes >= 6 + 2 * 2  # six updates, and for each of two rounds a model and a row
    for at in range(writes):
        for after in (False, True):
            made = world(tmp_path / f"{at}-{after}", strategy, **settings)
            FUSE.arm(at, after=after)
            with pytest.raises(KilledError):
                made.run().run()
            FUSE.armed = False
            done = len(models(made))
            counted, before = len(made.journal.recorded(done + 1)), training(made)
            assert made.run().run().rounds == 2
            where = f"killed {'after' if after else 'before'} write {at}"
            assert models(made) == expected, where
            # Who had counted is not asked again; of the others one at most had sent its update already.
            assert training(made) - before == 3 * (2 - done) - counted, where
            made.database.close()
    whole.database.close()


def test_a_row_that_the_database_wrote_although_the_commit_seemed_to_fail_is_written_once(tmp_path: Path) -> None:
    made = world(tmp_path / "w", "fedavg")
    fail = iter([False, False, True, False, True, False, False, False, False, False, False, False, False])
    real = made.database.transaction

    @contextlib.contextmanager
    def unlucky() -> Iterator[Session]:
        with real() as session:
            yield session
        if next(fail, False):  # it is committed, but the answer was lost
            raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    made.database.transaction = unlucky  # type: ignore[method-assign]  # the connection that fails
    assert made.run().run().rounds == 2
    with made.database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(CampaignUpdate)) == 6
        assert session.scalar(sa.select(sa.func.count()).select_from(CampaignRound)) == 2


@pytest.mark.parametrize(("away_s", "survives"), [(60.0, True), (1_000.0, False)])
def test_a_database_that_is_away_is_waited_for_with_a_deadline(tmp_path: Path, away_s: float, survives: bool) -> None:
    made = world(tmp_path / "w", "fedavg", round_deadline_ms=600_000)
    real = made.database.transaction
    away_from = made.clock.now + 0.05

    @contextlib.contextmanager
    def absent() -> Iterator[Session]:
        if away_from <= made.clock.now < away_from + away_s:
            raise sa.exc.OperationalError("BEGIN", {}, Exception("connection refused"))
        with real() as session:
            yield session

    made.database.transaction = absent  # type: ignore[method-assign]  # the connection that fails
    if survives:
        assert made.run().run().rounds == 2
        return
    with pytest.raises(sa.exc.OperationalError):
        made.run().run()
    assert made.clock.now - away_from < 200.0
    assert made.journal.rounds() == []
    assert made.journal.recorded(1) == []


def test_a_statement_that_is_wrong_is_not_repeated(tmp_path: Path) -> None:
    made = world(tmp_path / "w", "fedavg")
    with made.database.transaction() as session:
        session.execute(sa.text("DROP TABLE campaign_rounds"))
    started = made.clock.now
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        made.run().run()
    assert made.clock.now == started
