"""Tells listeners which resources changed, so that a page can be live without asking for everything all the time.

One task per process looks at cheap fingerprints of the tables once a period, only while somebody listens. It works
across processes, because it looks at the store and at nothing else. A listener that is slow gets each changed topic
once, however often it changed: what waits for it is bounded by the number of topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from skerry_server.store.database import Database
from skerry_server.store.tables import (
    AuditRow,
    Campaign,
    CampaignParticipant,
    CampaignRound,
    Candidate,
    ChampionEntry,
    Cohort,
    Device,
    DriftWindow,
    HealthRow,
    Incident,
    Job,
    LabelRow,
    Policy,
    Release,
    Rollout,
    RolloutDevice,
)

#: Seconds between two looks.
PERIOD_S = 0.5
#: Most listeners of one process.
LISTENERS = 128

_LOGGER = logging.getLogger(__name__)
Fingerprint = tuple[Any, ...]

_count = sa.func.count
_sum = sa.func.sum
_max = sa.func.max


def _number(column: Any) -> Any:
    return _sum(sa.cast(column, sa.Integer))


#: Topic to the figures that change whenever the resource does.
_FIGURES: Mapping[str, tuple[sa.Select[*tuple[Any, ...]], ...]] = {
    "devices": (
        sa.select(
            _count(),
            _number(Device.online),
            _number(Device.revoked),
            _max(Device.last_seen_ms),
            _sum(Device.reported_revision),
            _sum(Device.reported_sequence),
            _sum(Device.desired_sequence),
            _sum(Device.published_sequence),
            _sum(Device.chunks_done),
            _sum(Device.labelled_samples),
        ).select_from(Device),
        sa.select(_max(HealthRow.id)),
        sa.select(_max(LabelRow.id)),
        # Labels have no counter of their own; every change of them stands in the ledger.
        sa.select(_max(AuditRow.sequence)).where(AuditRow.action.like("device.%")),
    ),
    "cohorts": (sa.select(_count(), _max(Cohort.created_ms)).select_from(Cohort),),
    "jobs": (
        sa.select(
            Job.state, _count(), _max(Job.started_ms), _max(Job.finished_ms), _max(sa.cast(Job.progress, sa.Text))
        ).group_by(Job.state),
    ),
    "candidates": (sa.select(Candidate.state, _count()).group_by(Candidate.state),),
    "releases": (sa.select(Release.state, _count()).group_by(Release.state),),
    "champions": (sa.select(_max(ChampionEntry.id)),),
    "rollouts": (
        sa.select(_count(), _max(Rollout.updated_ms)).select_from(Rollout),
        sa.select(RolloutDevice.state, _count(), _max(RolloutDevice.instructed_ms)).group_by(RolloutDevice.state),
    ),
    "campaigns": (
        sa.select(_count(), _max(Campaign.updated_ms)).select_from(Campaign),
        sa.select(_count(), _max(CampaignRound.committed_ms)).select_from(CampaignRound),
        sa.select(
            CampaignParticipant.state, CampaignParticipant.reason_code, _count(), _sum(CampaignParticipant.rounds)
        ).group_by(CampaignParticipant.state, CampaignParticipant.reason_code),
        # The phase of a round is told by the job.
        sa.select(Job.id, sa.cast(Job.progress, sa.Text)).where(Job.kind == "campaign", Job.state == "running"),
    ),
    "drift": (
        sa.select(_max(DriftWindow.id), _count()).where(DriftWindow.judged.is_(True)),
        # A verdict about another release does not count any more.
        sa.select(_sum(Device.reported_revision), _sum(Device.reported_sequence)),
    ),
    "incidents": (sa.select(_count(), _max(Incident.updated_ms)).select_from(Incident),),
    "policies": (
        sa.select(_max(AuditRow.sequence)).where(AuditRow.action.like("policy.%")),
        sa.select(_count(Policy.name)),
    ),
    "audit": (sa.select(_max(AuditRow.sequence)),),
}

#: Everything that can change.
TOPICS: frozenset[str] = frozenset(_FIGURES)


def take_fingerprints(session: Session) -> dict[str, Fingerprint]:
    """Per topic, a value that is another one when the resource is."""
    return {
        topic: tuple(tuple(row) for query in figures for row in session.execute(query).all())
        for topic, figures in _FIGURES.items()
    }


class TooManyListenersError(Exception):
    """The process has as many listeners as it can bear."""


class _Listener:
    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.wake = asyncio.Event()


class ChangeFeed:
    """Watches one store for any number of listeners. Use it from one event loop; :meth:`close` joins its task.

    Attributes:
        looks: Looks at the store that succeeded.
        failures: Looks that failed; the next one tries again.
    """

    def __init__(self, database: Database, *, period_s: float = PERIOD_S) -> None:
        self._database = database
        self._period_s = period_s
        self._listeners: set[_Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self.looks = 0
        self.failures = 0

    async def listen(self, *, silence_s: float) -> AsyncIterator[frozenset[str]]:
        """Changed topics as they change; an empty set after ``silence_s`` seconds without one. Ends on close.

        Raises:
            TooManyListenersError: There are :data:`LISTENERS` already.
        """
        if len(self._listeners) >= LISTENERS:
            raise TooManyListenersError
        listener = _Listener()
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="change-feed")
        try:
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(silence_s):
                        await listener.wake.wait()
                listener.wake.clear()
                if self._closed.is_set():
                    return
                changed = frozenset(listener.waiting)
                listener.waiting.clear()
                yield changed
        finally:
            self._listeners.discard(listener)

    def finish(self) -> None:
        """Let every listener end soon; safe to call from a signal handler that runs in the loop."""
        self._closed.set()
        for listener in self._listeners:
            listener.wake.set()

    async def close(self) -> None:
        """End every listener and join the task."""
        self.finish()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        seen: dict[str, Fingerprint] | None = None
        while self._listeners and not self._closed.is_set():
            now = await run_in_threadpool(self._look)
            if now is None:
                self.failures += 1
            else:
                self.looks += 1
                if seen is not None:
                    self._tell({topic for topic in now if now[topic] != seen[topic]})
                seen = now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._closed.wait()

    def _look(self) -> dict[str, Fingerprint] | None:
        try:
            with self._database.reading() as session:
                return take_fingerprints(session)
        except SQLAlchemyError as error:
            _LOGGER.warning("cannot look for changes: %s", error)
            return None

    def _tell(self, changed: set[str]) -> None:
        if not changed:
            return
        for listener in self._listeners:
            listener.waiting |= changed
            listener.wake.set()
