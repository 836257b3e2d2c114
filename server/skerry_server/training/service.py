"""Starting a central training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_models.errors import TaskLoadError, UnknownTaskError
from skerry_models.task import Task, load_task
from skerry_server.audit import ledger
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, PlatformError
from skerry_server.jobs import queue
from skerry_server.releases.service import get_candidate, get_release
from skerry_server.store.tables import Campaign, CampaignRound, Job
from skerry_server.training.settings import parse_settings


def start_training(session: Session, *, task: str, settings: Mapping[str, object], actor: str) -> Job:
    """Enqueue a training run; its job's result is ``{"candidate_id": ...}``.

    Args:
        session: Open transaction.
        task: Name of the task.
        settings: Fields of :class:`~skerry_server.training.settings.TrainingSettings`; what is left out comes from
            the task.
        actor: Who asked, for the audit ledger.

    Raises:
        InvalidRequestError: An unknown task or field, or a value out of range.
        NotFoundError: The warm start names something that does not exist.
        ConflictError: The warm start's campaign has no committed round.
        PlatformError: The task's package does not load.
    """
    chosen = parse_settings(known_task(task).default_training, settings)
    start = _resolve_warm_start(session, task, chosen.warm_start)
    job = queue.enqueue(
        session,
        "train",
        {
            "task": task,
            "settings": chosen.as_dict(),
            "initial_sha256": start.parameters_sha256,
            "parent_release": start.parent_release,
        },
    )
    # Once per task and control plane: what does not depend on the parameters is made while they are trained.
    queue.enqueue(session, "exports", {"task": task}, job_id=f"job-exports-{task}")
    ledger.append(session, actor=actor, action="training.start", subject=job.id, detail=dict(job.payload))
    return job


def known_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InvalidRequestError: No installed package registers it; the error lists those that are.
        PlatformError: Its package does not load.
    """
    try:
        return load_task(name)
    except UnknownTaskError as error:
        raise InvalidRequestError("task", expected=f"one of {', '.join(error.known)}", got=name) from error
    except TaskLoadError as error:
        raise PlatformError(str(error), remedy="repair or reinstall the package that registers the task") from error


@dataclass(frozen=True)
class _WarmStart:
    parameters_sha256: str = ""
    parent_release: str = ""


def _resolve_warm_start(session: Session, task: str, warm_start: str) -> _WarmStart:
    """Pin the start by digest now, so that every attempt of the job starts from the same parameters."""
    if not warm_start:
        return _WarmStart()
    kind, _, identifier = warm_start.partition("/")
    if kind == "release":
        release = get_release(session, identifier)
        _check_task(release.task, task, warm_start)
        return _WarmStart(get_candidate(session, release.candidate_id).parameters_sha256, release.id)
    campaign = session.get(Campaign, identifier)
    if campaign is None:
        raise NotFoundError("campaign", identifier)
    _check_task(campaign.task, task, warm_start)
    newest = session.scalar(
        sa.select(CampaignRound)
        .where(CampaignRound.campaign_id == identifier)
        .order_by(CampaignRound.number.desc())
        .limit(1)
    )
    if newest is None:
        raise ConflictError(f"campaign {identifier} has no committed round to start from")
    return _WarmStart(newest.parameters_sha256, campaign.base_release)


def _check_task(found: str, wanted: str, warm_start: str) -> None:
    if found != wanted:
        raise InvalidRequestError("settings.warm_start", expected=f"parameters of task {wanted!r}", got=warm_start)
