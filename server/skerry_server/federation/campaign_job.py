"""Job kind "campaign": puts a plan, Flower, the journal, torch and MLflow together for one campaign.

Payload ``{"campaign_id"}``, result ``{"campaign_id", "best_round", "parameters_sha256", "rounds", "metrics"}``.
Killed anywhere and run again it continues behind the last committed round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from skerry_models.task import HOLDOUT
from skerry_server import superlink
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, RequestError
from skerry_server.federation.campaign_machine import RUNNING
from skerry_server.federation.campaign_run import CampaignPlan, CampaignResult, CampaignRun, Holdout
from skerry_server.federation.exchange import Exchange
from skerry_server.federation.journal import CampaignJournal, RoundRecord
from skerry_server.federation.round_loop import Resolve, RoundFailedError
from skerry_server.federation.settings import load_settings
from skerry_server.federation.strategies import create_strategy
from skerry_server.federation.tracking import CampaignTracker
from skerry_server.jobs.kinds import JobContext
from skerry_server.releases.service import get_release, release_parameters
from skerry_server.store.tables import Campaign, CampaignParticipant, Device, Incident
from skerry_server.training.service import known_task

if TYPE_CHECKING:
    from skerry_server.registry.mlflow_registry import MlflowRegistry

#: How often a running campaign looks whether it was aborted (seconds).
CHECK_S = 1.0


class CampaignFailedError(RequestError):
    """The campaign cannot go on, and trying again does not help; committed rounds are kept."""


def run(job: JobContext) -> dict[str, Any]:
    """Run the campaign; see the module."""
    from skerry_server.federation.flower import FlowerRun

    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per request, twenty requests a second
    context = job.context
    plan, strategy_name = load_plan(context, str(job.payload["campaign_id"]))
    journal = CampaignJournal(context.database, context.artifacts, plan.campaign_id, job.folder / "updates")
    access = superlink.access(context.config, context.layout)

    @contextmanager
    def open_exchange() -> Iterator[Exchange]:
        with FlowerRun(access, lock=context.layout.superlink / "submit.lock") as exchange:
            _set_column(context, plan.campaign_id, flower_run_id=str(exchange.run_id))
            yield exchange
            exchange.complete()

    tracker = _open_tracker(job, plan, strategy_name)

    def on_round(record: RoundRecord) -> None:
        tracker.committed(record)
        job.progress(round=record.number, rounds=plan.settings.rounds, accuracy=record.accuracy, loss=record.loss)

    campaign = CampaignRun(
        plan,
        create_strategy(strategy_name, plan.settings),
        journal,
        open_exchange=open_exchange,
        resolve=lambda exchange: _resolver(context, plan, exchange),
        evaluate=_evaluator(plan.task),
        on_round=on_round,
        check=_abort_check(context, plan.campaign_id),
    )
    try:
        result = campaign.run()
        _finish_tracking(tracker, result)
    except CampaignFailedError:  # aborted
        tracker.abandon()
        raise
    except RoundFailedError as error:
        tracker.abandon()
        done = len(journal.rounds())
        raise CampaignFailedError(f"round {done + 1} of {plan.settings.rounds}: {error}") from error
    finally:
        tracker.close()
    return {
        "campaign_id": plan.campaign_id,
        "best_round": result.best.number,
        "parameters_sha256": result.best.parameters_sha256,
        "rounds": result.rounds,
        "metrics": result.metrics,
    }


def load_plan(context: ServerContext, campaign_id: str) -> tuple[CampaignPlan, str]:
    """The plan of a running campaign and the name of its strategy.

    Raises:
        ConflictError: The campaign is not running.
    """
    with context.database.reading() as session:
        campaign = session.get(Campaign, campaign_id)
        if campaign is None or campaign.state != RUNNING:
            state = "unknown" if campaign is None else campaign.state
            raise ConflictError(f"campaign {campaign_id} is {state}, not {RUNNING}")
        incident = session.get(Incident, campaign.incident_id) if campaign.incident_id else None
        accepted = session.scalars(
            sa.select(CampaignParticipant.device_id)
            .where(CampaignParticipant.campaign_id == campaign_id, CampaignParticipant.state == "accepted")
            .order_by(CampaignParticipant.device_id)
        ).all()
        plan = CampaignPlan(
            campaign_id=campaign_id,
            task=campaign.task,
            settings=load_settings(campaign.settings),
            participants=tuple(accepted),
            train_step_sha256=get_release(session, campaign.base_release).train_step_sha256,
            base=release_parameters(session, context, campaign.base_release),
            incident_devices=tuple(incident.device_ids) if incident is not None else (),
        )
        return plan, campaign.strategy


def _resolver(context: ServerContext, plan: CampaignPlan, exchange: Exchange) -> Resolve:
    """Devices of the plan with the node that each reported last, if the SuperLink sees it."""
    query = (
        sa.select(CampaignParticipant.device_id, CampaignParticipant.flower_node_id, Device.flower_node_id)
        .join(Device, Device.id == CampaignParticipant.device_id)
        .where(CampaignParticipant.campaign_id == plan.campaign_id, Device.revoked.is_(False))
    )

    def resolve() -> dict[str, int | None]:
        connected = exchange.nodes()
        with context.database.reading() as session:
            rows = session.execute(query).all()
        known = {device: {int(node) for node in (at_invitation, now) if node} for device, at_invitation, now in rows}
        return {
            device: next(iter(sorted(known.get(device, set()) & connected, reverse=True)), None)
            for device in plan.participants
            if device in known
        }

    return resolve


def _evaluator(task_name: str) -> Callable[[Mapping[str, object]], Holdout]:
    import torch

    from skerry_models.evaluation import evaluate_parameters

    torch.set_num_threads(1)  # this process waits for devices on a machine that serves others
    task = known_task(task_name)
    holdout = task.source(HOLDOUT)

    def evaluate(state: Mapping[str, Any]) -> Holdout:
        figures = evaluate_parameters(task, state, holdout)
        return Holdout(figures.accuracy, figures.macro_f1, figures.loss)

    return evaluate


def _abort_check(context: ServerContext, campaign_id: str) -> Callable[[], None]:
    next_look = 0.0

    def check() -> None:
        nonlocal next_look
        if time.monotonic() < next_look:
            return
        next_look = time.monotonic() + CHECK_S
        with context.database.reading() as session:
            state = session.scalar(sa.select(Campaign.state).where(Campaign.id == campaign_id))
        if state != RUNNING:
            raise CampaignFailedError(f"the campaign is {state}")

    return check


def _open_tracker(job: JobContext, plan: CampaignPlan, strategy: str) -> CampaignTracker:
    def open_run() -> tuple[MlflowRegistry, str]:
        from skerry_server.registry.mlflow_registry import open_registry

        registry = open_registry(job.context.layout, job.context.config)
        run_id = registry.ensure_run(
            plan.task,
            key=plan.campaign_id,
            name=f"campaign {plan.campaign_id}",
            tags={"skerry.campaign": plan.campaign_id, "skerry.origin": "federated"},
        )
        _set_column(job.context, plan.campaign_id, mlflow_run_id=run_id)
        return registry, run_id

    tracker = CampaignTracker(open_run, job.context.artifacts, job.folder / "mlflow")
    tracker.parameters(
        {"task": plan.task, "strategy": strategy, "devices": len(plan.participants), **plan.settings.as_dict()}
    )
    return tracker


def _finish_tracking(tracker: CampaignTracker, result: CampaignResult) -> None:
    tracker.finish(
        metrics={f"result_{name}": value for name, value in result.metrics.items()},
        step=result.best.number,
        at_ms=result.best.committed_ms,
        tags={"skerry.parameters_sha256": result.best.parameters_sha256, "skerry.best_round": str(result.best.number)},
    )


def _set_column(context: ServerContext, campaign_id: str, **values: str) -> None:
    """Note something about the campaign; updated_ms belongs to its state and is left alone."""
    with context.database.transaction() as session:
        session.execute(sa.update(Campaign).where(Campaign.id == campaign_id).values(**values))
