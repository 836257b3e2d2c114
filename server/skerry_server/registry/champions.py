"""The champion ledger: which release stood for a task, from when, and why. Append-only.

MLflow aliases have no history and vanish with the version they point at, so decisions read this ledger; the alias
"champion" follows it through a job that is enqueued in the same transaction.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.jobs import queue
from skerry_server.store.tables import ChampionEntry, Release


def promote(session: Session, *, task: str, release_id: str, reason: str, actor: str = "system") -> ChampionEntry:
    """Make a release the champion of its task. Promoting the champion again changes nothing.

    Args:
        session: Open transaction.
        task: Task of the release.
        release_id: Which one.
        reason: Why; kept in the ledger.
        actor: Who decided, for the audit ledger.

    Returns:
        The newest entry of the ledger, which names the release.

    Raises:
        NotFoundError: There is no such release.
        InvalidRequestError: It belongs to another task, or no reason is given.
        ConflictError: It is withdrawn.
    """
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError("release", release_id)
    if release.task != task:
        raise InvalidRequestError("task", expected=f"{release.task!r}, the task of {release_id}", got=task)
    if not reason.strip():
        raise InvalidRequestError("reason", expected="a reason", got=reason)
    if release.state != "available":
        raise ConflictError(f"release {release_id} is {release.state} and cannot be champion")
    newest = _newest(session, task)
    if newest is not None and newest.release_id == release_id:
        return newest
    entry = ChampionEntry(
        task=task,
        release_id=release_id,
        previous_release=newest.release_id if newest else "",
        reason=reason,
        at_ms=now_ms(),
    )
    session.add(entry)
    session.flush()
    ledger.append(
        session,
        actor=actor,
        action="champion.promote",
        subject=release_id,
        detail={"task": task, "previous_release": entry.previous_release, "reason": reason},
    )
    queue.enqueue(session, "registry-aliases", {"task": task}, job_id=f"job-champion-{entry.id}")
    return entry


def champion(session: Session, task: str) -> Release | None:
    """The release that stands for a task now; None before the first promotion."""
    newest = _newest(session, task)
    return session.get(Release, newest.release_id) if newest else None


def history(session: Session, task: str) -> list[ChampionEntry]:
    """Every promotion of a task, oldest first."""
    return list(session.scalars(sa.select(ChampionEntry).where(ChampionEntry.task == task).order_by(ChampionEntry.id)))


def champion_at(session: Session, task: str, at_ms: int) -> str:
    """Identifier of the release that was champion at a moment (milliseconds since 1970); empty before the first."""
    query = (
        sa.select(ChampionEntry.release_id)
        .where(ChampionEntry.task == task, ChampionEntry.at_ms <= at_ms)
        .order_by(ChampionEntry.id.desc())
        .limit(1)
    )
    return session.scalar(query) or ""


def _newest(session: Session, task: str) -> ChampionEntry | None:
    return session.scalar(
        sa.select(ChampionEntry).where(ChampionEntry.task == task).order_by(ChampionEntry.id.desc()).limit(1)
    )


@event.listens_for(ChampionEntry, "before_update")
@event.listens_for(ChampionEntry, "before_delete")
def _refuse_change(_mapper: Any, _connection: Any, entry: ChampionEntry) -> None:
    """A defect of ours, never a request: entries are added and nothing else."""
    raise RuntimeError(f"the champion ledger is append-only: entry {entry.id} cannot be changed")
