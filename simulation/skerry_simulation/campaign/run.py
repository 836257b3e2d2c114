"""Run a scenario: production's campaign loop, journal, strategy and device trainer over an engine's exchange."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_contract.tensors import Array
from skerry_models.evaluation import evaluate_parameters
from skerry_models.parameters import State, encode_state, initial_parameters
from skerry_models.task import Task, load_task
from skerry_server.clock import now_ms
from skerry_server.federation.exchange import Exchange
from skerry_server.federation.rounds.campaign_run import CampaignPlan, CampaignResult, CampaignRun, Holdout, Workshop
from skerry_server.federation.rounds.journal import CampaignJournal, RoundRecord
from skerry_server.federation.rounds.round_privacy import RoundPrivacy
from skerry_server.federation.settings import parse_settings
from skerry_server.federation.strategies import check_strategy, create_strategy
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.store import Database
from skerry_server.store.tables import Base, Campaign
from skerry_simulation.clients import prepare_clients
from skerry_simulation.engines import ENGINES
from skerry_simulation.engines.engine import Devices
from skerry_simulation.errors import ScenarioError
from skerry_simulation.scenario import Scenario

_CAMPAIGN = "simulation"


@dataclass
class SimulationResult:
    """What a simulation found. Accuracies are fractions on the task's sources; seconds are wall-clock.

    Attributes:
        scenario: As run.
        accuracy: "initial" and "final" on the holdout, "unseen" of the final model.
        rounds: One document a round.
        start_seconds: Until the first round began.
        seconds: In all.
        parameters: The final model.
    """

    scenario: Scenario
    accuracy: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    start_seconds: float = 0.0
    seconds: float = 0.0
    parameters: State = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """JSON form, without the parameters."""
        return {
            "scenario": self.scenario.model_dump(),
            "accuracy": self.accuracy,
            "rounds": self.rounds,
            "start_seconds": round(self.start_seconds, 3),
            "seconds": round(self.seconds, 3),
        }


def run_scenario(
    scenario: Scenario, folder: Path, *, on_round: Callable[[RoundRecord], None] = lambda _: None
) -> SimulationResult:
    """Run a scenario.

    Args:
        scenario: What to run.
        folder: For exported graphs and the campaign's journal.
        on_round: Hears of each committed round.

    Raises:
        ScenarioError: The scenario asks for what the task or the engine does not have.
        InvalidRequestError: A campaign setting is wrong; the field is named.
        RoundFailedError: A round did not reach its quorum.
    """
    started = time.monotonic()
    task = load_task(scenario.task)
    names = task.client_names()
    if scenario.population.clients > len(names):
        raise ScenarioError(
            "population.clients", expected=f"at most {len(names)} for {task.name}", got=scenario.population.clients
        )
    chosen = dict(scenario.campaign)
    strategy_name = str(chosen.pop("strategy", "fedavg"))
    given = {"minimum_samples": 2, "quorum": 1.0, "seed": scenario.seed, **chosen}
    settings = parse_settings(task.default_campaign, given, strategy=check_strategy(strategy_name))
    strategy = create_strategy(strategy_name, settings)
    base = initial_parameters(task, scenario.seed)
    plan = prepare_clients(task, base, scenario.population.clients, folder / "graphs")
    result = SimulationResult(scenario)
    holdout = task.source("holdout")

    def evaluate(state: Mapping[str, Array]) -> Holdout:
        judged = evaluate_parameters(task, state, holdout)
        return Holdout(judged.accuracy, judged.macro_f1, judged.loss)

    def heard(record: RoundRecord) -> None:
        result.rounds.append(
            {
                "number": record.number,
                "accepted": record.accepted,
                "accuracy": record.accuracy,
                "loss": record.loss,
                "seconds": record.seconds,
            }
        )
        on_round(record)

    result.accuracy["initial"] = evaluate(base).accuracy
    with _journal(folder, scenario) as (database, artifacts):
        journal = CampaignJournal(database, artifacts, _CAMPAIGN, folder / "spool")

        def body(exchange: Exchange, devices: Devices) -> CampaignResult:
            result.start_seconds = time.monotonic() - started
            workshop = Workshop(
                CampaignPlan(
                    _CAMPAIGN, task.name, settings, tuple(devices), plan.train_step_sha256, encode_state(base)
                ),
                strategy,
                journal,
                RoundPrivacy.of(settings, _CAMPAIGN, journal.secret),
                evaluate,
            )
            run = CampaignRun(
                workshop,
                open_exchange=lambda: nullcontext(exchange),
                resolve=lambda _: lambda: devices,
                on_round=heard,
            )
            return run.run()

        engine = ENGINES[scenario.engine.name](workers=scenario.engine.workers)
        ended = engine.run(plan, body)
        result.parameters = journal.load(ended.best.parameters_sha256)
    _judge(task, result)
    result.seconds = time.monotonic() - started
    return result


def _judge(task: Task, result: SimulationResult) -> None:
    for name, source in (("final", "holdout"), ("unseen", "unseen")):
        result.accuracy[name] = evaluate_parameters(task, result.parameters, task.source(source)).accuracy


@contextmanager
def _journal(folder: Path, scenario: Scenario) -> Iterator[tuple[Database, ArtifactStore]]:
    """A database and an artifact store of the simulation's own, with the one campaign in it."""
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    with database.transaction() as session:
        session.add(
            Campaign(
                id=_CAMPAIGN,
                task=scenario.task,
                base_release="",
                cohort_id="all",
                strategy=str(scenario.campaign.get("strategy", "fedavg")),
                settings={},
                state="running",
                created_by="simulation",
                created_ms=now_ms(),
                updated_ms=now_ms(),
            )
        )
    try:
        yield database, ArtifactStore(f"file://{folder / 'artifacts'}", local=folder / "artifacts-local")
    finally:
        database.close()
