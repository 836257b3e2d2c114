"""Job kind "campaign": puts a plan, Flower, the journal, the holdout and MLflow together for one campaign.

Payload ``{"campaign_id"}``, result ``{"campaign_id", "best_round", "parameters_sha256", "rounds", "metrics", "ended",
"privacy", "calibration"}``; ``{"campaign_id", "paused": True}`` when it ended for a pause. Killed anywhere and run
again it continues behind the last committed round. torch is imported only where the base release's bundle is missing,
or rounds are judged as deployed.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from skerry_contract.tensors import decode_bundle
from skerry_models.task import CENTRAL, HOLDOUT
from skerry_server import superlink
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, RequestError
from skerry_server.federation.campaign_machine import PAUSED, RUNNING
from skerry_server.federation.exchange import Exchange, HasGuests
from skerry_server.federation.participants import participation
from skerry_server.federation.privacy import PrivacyBudgetError
from skerry_server.federation.rounds.calibration_source import CALIBRATE_GRAPH, CalibrationSource, OnnxReference
from skerry_server.federation.rounds.campaign_run import CampaignPlan, CampaignResult, CampaignRun, Workshop
from skerry_server.federation.rounds.collecting import MakeCollecting
from skerry_server.federation.rounds.deployed import DeployedJudge, cohorts_of
from skerry_server.federation.rounds.holdout import EVALUATE, Evaluate, OnnxHoldout, bundle_graph, torch_holdout
from skerry_server.federation.rounds.journal import CampaignJournal, RoundRecord
from skerry_server.federation.rounds.patience import Patience
from skerry_server.federation.rounds.phases import PhaseOverrunError
from skerry_server.federation.rounds.round_loop import Resolve, RoundFailedError
from skerry_server.federation.rounds.round_privacy import RoundPrivacy
from skerry_server.federation.rounds.secure_collecting import SecureCollecting
from skerry_server.federation.rounds.tracking import CampaignTracker
from skerry_server.federation.service import job_id
from skerry_server.federation.settings import load_settings
from skerry_server.federation.strategies import create_strategy
from skerry_server.jobs.kinds import JobContext
from skerry_server.releases.service import get_release, release_parameters
from skerry_server.store.tables import Campaign, CampaignParticipant, Device, Incident
from skerry_server.training.service import known_task

if TYPE_CHECKING:
    from skerry_server.registry.mlflow_registry import MlflowRegistry

logger = logging.getLogger(__name__)

#: How often a running campaign looks whether it was aborted, and says in which phase it is (seconds).
CHECK_S = 1.0


class CampaignFailedError(RequestError):
    """The campaign cannot go on, and trying again does not help; committed rounds are kept."""


class CampaignPausedError(Exception):
    """A person paused the campaign: the job ends, and is queued again when it is resumed."""


def run(job: JobContext) -> dict[str, Any]:
    """Run the campaign; see the module."""
    try:
        return _run(job)
    except CampaignPausedError:
        return {"campaign_id": str(job.payload["campaign_id"]), "paused": True}


def _run(job: JobContext) -> dict[str, Any]:
    from skerry_server.federation.flower.run import NO_CLIENT_APP, FlowerRun

    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per request, twenty requests a second
    context, patience = job.context, Patience()
    plan, strategy_name, bundle_sha256 = patience.run(lambda: load_plan(context, str(job.payload["campaign_id"])))
    journal = CampaignJournal(
        context.database,
        context.artifacts,
        plan.campaign_id,
        spool_folder(context, plan.campaign_id),
        patience=patience,
        on_commit=participation.note_commit,
    )
    access = superlink.access(context.config, context.layout)

    @contextmanager
    def open_exchange() -> Iterator[Exchange]:
        lock, client_app = context.layout.superlink / "submit.lock", plan.settings.client_app or NO_CLIENT_APP
        with FlowerRun(access, lock=lock, client_app=client_app) as exchange:
            patience.run(lambda: _set_column(context, plan.campaign_id, flower_run_id=str(exchange.run_id)))
            yield exchange
            exchange.complete()

    #: Nodes that are no devices and have been seen; they take part in every round.
    guests: dict[str, int] | None = {} if plan.settings.client_app else None
    tracker = _open_tracker(job, plan, strategy_name)
    progress = CampaignProgress(job, plan, patience)

    def on_round(record: RoundRecord) -> None:
        tracker.committed(record)
        progress.committed(record)

    evaluate, judge = _evaluators(context, plan, bundle_sha256)
    privacy = RoundPrivacy.of(plan.settings, plan.campaign_id, journal.secret)
    workshop = Workshop(
        plan,
        create_strategy(strategy_name, plan.settings),
        journal,
        privacy,
        evaluate,
        judge,
        _calibration(job, plan, bundle_sha256),
        on_phase=progress.phase,
    )
    campaign = CampaignRun(
        workshop,
        open_exchange=open_exchange,
        resolve=lambda exchange: _with_guests(_resolver(context, plan, exchange, patience), exchange, guests),
        on_round=on_round,
        choose=lambda number: (*_choose(context, plan, privacy, number, patience), *(guests or {})),
        collecting=_secure(context, plan, journal, progress.check) if plan.settings.secure_aggregation else None,
        check=progress.check,
    )
    try:
        result = campaign.run()
        progress.calibrated(result.calibration)
        _finish_tracking(tracker, result)
    except (CampaignFailedError, CampaignPausedError):  # a person aborted or paused it
        tracker.abandon()
        raise
    except (RoundFailedError, PhaseOverrunError, PrivacyBudgetError) as error:
        tracker.abandon()
        if isinstance(error, RoundFailedError):
            _note_failures(context, plan.campaign_id, error.failures, patience)
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
        "ended": result.ended,
        "privacy": result.privacy,
        "calibration": result.calibration,
    }


def _note_failures(context: ServerContext, campaign_id: str, failures: Mapping[str, str], patience: Patience) -> None:
    def note() -> None:
        with context.database.transaction() as session:
            participation.note_failures(session, campaign_id, failures)

    patience.run(note)


def spool_folder(context: ServerContext, campaign_id: str) -> Path:
    """Where the updates of a campaign's open round lie, whichever job collects it."""
    return context.layout.jobs / job_id(campaign_id) / "updates"


def load_plan(context: ServerContext, campaign_id: str) -> tuple[CampaignPlan, str, str]:
    """The plan of a running campaign, the name of its strategy and the digest of the base release's bundle.

    Raises:
        ConflictError: The campaign is not running.
        CampaignPausedError: It is paused.
    """
    with context.database.reading() as session:
        campaign = session.get(Campaign, campaign_id)
        if campaign is not None and campaign.state == PAUSED:
            raise CampaignPausedError
        if campaign is None or campaign.state != RUNNING:
            state = "unknown" if campaign is None else campaign.state
            raise ConflictError(f"campaign {campaign_id} is {state}, not {RUNNING}")
        incident = session.get(Incident, campaign.incident_id) if campaign.incident_id else None
        accepted = session.execute(
            sa.select(CampaignParticipant.device_id, CampaignParticipant.gateway_id)
            .where(CampaignParticipant.campaign_id == campaign_id, CampaignParticipant.state == "accepted")
            .order_by(CampaignParticipant.device_id)
        ).all()
        through: dict[str, tuple[str, ...]] = {}
        for device, gateway in accepted:
            if gateway:
                through[gateway] = (*through.get(gateway, ()), device)
        base = get_release(session, campaign.base_release)
        plan = CampaignPlan(
            campaign_id=campaign_id,
            task=campaign.task,
            settings=load_settings(campaign.settings),
            participants=tuple(device for device, gateway in accepted if not gateway),
            gateways=through,
            train_step_sha256=base.train_step_sha256,
            base=release_parameters(session, context, campaign.base_release),
            incident_devices=tuple(incident.device_ids) if incident is not None else (),
        )
        return plan, campaign.strategy, base.bundle_sha256


def _resolver(context: ServerContext, plan: CampaignPlan, exchange: Exchange, patience: Patience) -> Resolve:
    """Devices of the plan with the node that each reported last, if the SuperLink sees it."""
    query = (
        sa.select(CampaignParticipant.device_id, CampaignParticipant.flower_node_id, Device.flower_node_id)
        .join(Device, Device.id == CampaignParticipant.device_id)
        .where(CampaignParticipant.campaign_id == plan.campaign_id, Device.revoked.is_(False))
    )

    def read() -> Sequence[sa.Row[str, str, str]]:
        with context.database.reading() as session:
            return session.execute(query).all()

    def resolve() -> dict[str, int | None]:
        connected = exchange.nodes()
        rows = patience.run(read)
        known = {device: {int(node) for node in (at_invitation, now) if node} for device, at_invitation, now in rows}
        return {
            device: next(iter(sorted(known.get(device, set()) & connected, reverse=True)), None)
            for device in plan.participants
            if device in known
        }

    return resolve


def _with_guests(resolve: Resolve, exchange: Exchange, guests: dict[str, int] | None) -> Resolve:
    """Also the nodes that are no devices, which ``guests`` remembers; None: there are none."""
    if guests is None or not isinstance(exchange, HasGuests):
        return resolve
    source: HasGuests = exchange

    def both() -> dict[str, int | None]:
        connected = source.guests()
        guests.update(connected)
        return {**resolve(), **{name: connected.get(name) for name in guests}}

    guests.update(source.guests())
    return both


def _secure(
    context: ServerContext, plan: CampaignPlan, journal: CampaignJournal, check: Callable[[], None]
) -> MakeCollecting:
    authority_pem = context.layout.authority_certificate.read_bytes()

    def make(exchange: Exchange) -> SecureCollecting:
        return SecureCollecting(exchange, journal, authority_pem=authority_pem, check=check)

    return make


def _choose(
    context: ServerContext, plan: CampaignPlan, privacy: RoundPrivacy, number: int, patience: Patience
) -> tuple[str, ...]:
    """The devices of a round; behind them, where that changes no promise, others for those that drop out."""
    settings = plan.settings

    def choose() -> tuple[str, ...]:
        with context.database.transaction() as session:
            return participation.choose(
                session,
                plan.campaign_id,
                settings,
                round_number=number,
                available=privacy.draw(plan.participants),
            )

    chosen = patience.run(choose)
    rules = (privacy.plan.enabled, settings.participation_cap, settings.eligibility, settings.selection != "uniform")
    if not settings.per_round or any(rules):
        return chosen
    others = [device for device in plan.participants if device not in chosen]
    random.Random(f"{settings.seed}/{number}").shuffle(others)
    return (*chosen, *others)


def _evaluators(
    context: ServerContext, plan: CampaignPlan, bundle_sha256: str
) -> tuple[Evaluate, DeployedJudge | None]:
    """What measures a state on the holdout, and what judges it as deployed."""
    task = known_task(plan.task)
    holdout = task.source(HOLDOUT)
    graph = bundle_graph(context.artifacts, bundle_sha256, EVALUATE)
    if graph is None:
        if plan.settings.judge_every:
            logger.warning("without the base release's evaluate.onnx no round is judged as deployed")
        return torch_holdout(task, holdout), None
    evaluate = OnnxHoldout(graph, holdout, decode_bundle(plan.base))
    if not plan.settings.judge_every:
        return evaluate, None
    return evaluate, DeployedJudge(graph, task.source(CENTRAL), cohorts_of(task))


def _calibration(job: JobContext, plan: CampaignPlan, bundle_sha256: str) -> CalibrationSource | None:
    """How the devices are asked for the ranges of the result's activations; None: they are not."""
    if plan.settings.calibration != "federated":
        return None
    graph = bundle_graph(job.context.artifacts, bundle_sha256, CALIBRATE_GRAPH)
    reference = OnnxReference(graph, known_task(plan.task).source(CENTRAL)) if graph is not None else None
    return CalibrationSource(reference, job.folder / "calibration.json", job.context.artifacts.put_bytes)


class CampaignProgress:
    """What the console sees of a running campaign, and how the campaign learns that it must end."""

    def __init__(self, job: JobContext, plan: CampaignPlan, patience: Patience) -> None:
        self._job = job
        self._plan = plan
        self._patience = patience
        self._next_look = 0.0
        self._phase: dict[str, Any] = {}
        self._told: dict[str, Any] = {}

    def phase(self, number: int, phase: str) -> None:
        """A phase began; it is written down when it lasts until the next look."""
        self._phase = {"round_in_progress": number, "phase": phase}

    def committed(self, record: RoundRecord) -> None:
        """A round was committed."""
        self._tell(round=record.number, rounds=self._plan.settings.rounds, accuracy=record.accuracy, loss=record.loss)

    def calibrated(self, calibration: Mapping[str, Any]) -> None:
        """Whose rows the result's INT8 ranges come from; empty: nobody was asked."""
        if calibration:
            self._tell(calibration=dict(calibration))

    def check(self) -> None:
        """Now and then, see whether the campaign still runs; raises CampaignFailedError when it does not."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + CHECK_S
        state = self._patience.run(self._state)
        if state == PAUSED:
            raise CampaignPausedError
        if state != RUNNING:
            raise CampaignFailedError(f"the campaign is {state}")
        if self._phase != self._told:
            self._tell(**self._phase)
            self._told = dict(self._phase)

    def _state(self) -> str | None:
        with self._job.context.database.reading() as session:
            return session.scalar(sa.select(Campaign.state).where(Campaign.id == self._plan.campaign_id))

    def _tell(self, **fields: Any) -> None:
        self._patience.run(lambda: self._job.progress(**fields))


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
