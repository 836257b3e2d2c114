from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from skerry_server.api.changes import LISTENERS, TOPICS, ChangeFeed, TooManyListenersError, take_fingerprints
from skerry_server.store import Database
from skerry_server.store.tables import Base, Campaign, CampaignRound, Device, DriftWindow, Incident, Job, Rollout

SILENCE_S = 20.0


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite'}")
    Base.metadata.create_all(database.engine)
    with database.transaction() as session:
        session.add(Device(id="press-01", enrolled_ms=1))
        session.add(Job(id="job-1", kind="train", payload={}, state="queued", created_ms=1))
    return database


def _device(session: Session) -> Device:
    device = session.get(Device, "press-01")
    assert device is not None
    return device


def _online(session: Session) -> None:
    _device(session).online = True


def _progress(session: Session) -> None:
    _device(session).chunks_done = 7


def _started(session: Session) -> None:
    job = session.get(Job, "job-1")
    assert job is not None
    job.state, job.started_ms = "running", 5


def _job_progress(session: Session) -> None:
    job = session.get(Job, "job-1")
    assert job is not None
    job.progress = {"epoch": 3}


def _rollout(session: Session) -> None:
    session.add(
        Rollout(
            id="r",
            release_id="x",
            task="t",
            cohort_id="all",
            state="pending",
            canary_percent=1,
            probation_ms=1,
            created_by="ada",
            created_ms=1,
            updated_ms=1,
        )
    )


def _round(session: Session) -> None:
    session.add(
        Campaign(
            id="c",
            task="t",
            base_release="x",
            cohort_id="all",
            strategy="fedavg",
            settings={},
            state="running",
            created_by="ada",
            created_ms=1,
            updated_ms=1,
        )
    )
    session.flush()
    session.add(
        CampaignRound(
            campaign_id="c",
            number=1,
            invited=1,
            accepted=1,
            accuracy=0.5,
            loss=0.5,
            seconds=1,
            parameters_sha256="",
            committed_ms=1,
        )
    )


def _verdict(session: Session) -> None:
    session.add(
        DriftWindow(
            device_id="press-01",
            boot_id="b",
            window=1,
            release_id="x",
            edges_sha256="",
            started_ms=1,
            ended_ms=2,
            rows=3,
            body=b"",
            received_ms=4,
            verdict={"status": "ok"},
            judged=True,
        )
    )


def _incident(session: Session) -> None:
    session.add(
        Incident(
            id="i", kind="drift", task="t", release_id="x", state="detected", severity="act", opened_ms=1, updated_ms=1
        )
    )


@pytest.mark.parametrize(
    ("change", "topics"),
    [
        (_online, {"devices"}),
        (_progress, {"devices"}),
        (_started, {"jobs"}),
        (_job_progress, {"jobs"}),
        (_rollout, {"rollouts"}),
        (_round, {"campaigns"}),
        (_verdict, {"drift"}),
        (_incident, {"incidents"}),
    ],
)
def test_a_change_of_a_row_changes_its_topic_and_no_other(
    database: Database, change: Callable[[Session], None], topics: set[str]
) -> None:
    with database.reading() as session:
        before = take_fingerprints(session)
    with database.transaction() as session:
        change(session)
    with database.reading() as session:
        after = take_fingerprints(session)
    assert {topic for topic in TOPICS if before[topic] != after[topic]} == topics


async def _next(stream: AsyncIterator[frozenset[str]]) -> frozenset[str]:
    return await asyncio.wait_for(anext(stream), 15)


async def _awake(stream: AsyncIterator[frozenset[str]], feed: ChangeFeed) -> asyncio.Task[frozenset[str]]:
    """Begin to listen and wait until the feed has taken its first look."""
    waiting = asyncio.create_task(_next(stream))
    while feed.looks == 0:
        await asyncio.sleep(0.005)
    return waiting


def test_every_listener_learns_of_a_change_and_close_ends_them_all(database: Database) -> None:
    async def scenario() -> None:
        feed = ChangeFeed(database, period_s=0.01)
        first, second = feed.listen(silence_s=SILENCE_S), feed.listen(silence_s=SILENCE_S)
        waiting = [await _awake(first, feed), await _awake(second, feed)]
        await asyncio.sleep(0)
        with database.transaction() as session:
            _online(session)
        assert await asyncio.gather(*waiting) == [{"devices"}, {"devices"}]
        await feed.close()
        for stream in (first, second):
            with pytest.raises(StopAsyncIteration):
                await _next(stream)

    asyncio.run(scenario())


def test_silence_is_told_too(database: Database) -> None:
    async def scenario() -> None:
        feed = ChangeFeed(database, period_s=0.01)
        assert await _next(feed.listen(silence_s=0.05)) == frozenset()
        await feed.close()

    asyncio.run(scenario())


def test_listeners_are_bounded(database: Database) -> None:
    async def scenario() -> None:
        feed = ChangeFeed(database, period_s=0.01)
        streams = [feed.listen(silence_s=0.01) for _ in range(LISTENERS)]
        for stream in streams:
            await _next(stream)
        with pytest.raises(TooManyListenersError):
            await _next(feed.listen(silence_s=0.01))
        await streams[0].aclose()  # type: ignore[attr-defined]  # generators have it, iterators need not
        assert await _next(feed.listen(silence_s=0.01)) == frozenset()  # a place is free again
        await feed.close()

    asyncio.run(scenario())


def test_a_store_that_fails_for_a_while_does_not_end_the_feed(database: Database) -> None:
    async def scenario() -> None:
        feed = ChangeFeed(database, period_s=0.01)
        stream = feed.listen(silence_s=SILENCE_S)
        waiting = await _awake(stream, feed)
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE jobs RENAME TO jobs_away")
        while feed.failures == 0:
            await asyncio.sleep(0.005)
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE jobs_away RENAME TO jobs")
        with database.transaction() as session:
            _online(session)
        assert "devices" in await waiting
        await feed.close()

    asyncio.run(scenario())
