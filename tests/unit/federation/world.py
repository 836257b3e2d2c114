"""A whole campaign in memory: store, devices, and what a process of the campaign would be given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from skerry_contract.tensors import Array, encode_bundle
from skerry_server.federation.exchange import Exchange, ExchangeLostError
from skerry_server.federation.rounds.calibration_source import CalibrationSource
from skerry_server.federation.rounds.campaign_run import CampaignPlan, CampaignRun, Holdout, Workshop
from skerry_server.federation.rounds.collecting import MakeCollecting
from skerry_server.federation.rounds.journal import CampaignJournal, RoundRecord
from skerry_server.federation.rounds.patience import Patience
from skerry_server.federation.rounds.round_privacy import RoundPrivacy
from skerry_server.federation.settings import CampaignSettings
from skerry_server.federation.strategies import create_strategy
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.store import Database
from skerry_server.store.tables import Base, Campaign
from unit.agent_training.linear_graphs import numbers
from unit.federation.fakes import Clock, FakeDevice, FakeExchange

BASE = encode_bundle({"w": np.zeros(2, np.float32)})


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class World:
    """The store, the devices and what a process of the campaign would be given."""

    def __init__(
        self,
        folder: Path,
        devices: list[FakeDevice],
        *,
        strategy: str = "fedavg",
        database: Callable[[str], Database] = Database,
        artifacts: type[ArtifactStore] = ArtifactStore,
        **settings: Any,
    ) -> None:
        self.strategy = strategy
        self.database = database(f"sqlite:///{folder / 'store.sqlite'}")
        tables = [Base.metadata.tables[name] for name in ("campaigns", "campaign_rounds", "campaign_updates")]
        Base.metadata.create_all(self.database.engine, tables=tables)
        with self.database.transaction() as session:
            session.add(
                Campaign(
                    id="campaign-1",
                    task="t",
                    base_release="r1",
                    cohort_id="all",
                    strategy="fedavg",
                    settings={},
                    state="running",
                    created_by="test",
                    created_ms=1,
                    updated_ms=1,
                )
            )
        self.artifacts = artifacts(f"file://{folder / 'artifacts'}", local=folder / "artifacts")
        self.spool = folder / "updates"
        self.devices = devices
        self.clock = Clock()
        patience = Patience(clock=self.clock, sleep=self.clock.sleep)
        self.journal = CampaignJournal(self.database, self.artifacts, "campaign-1", self.spool, patience=patience)
        self.exchanges: list[FakeExchange] = []
        self.heard: list[int] = []
        defaults = {
            "rounds": 3,
            "local_epochs": 1,
            "batch_size": 8,
            "learning_rate": 0.1,
            "proximal_mu": 0.0,
            "round_deadline_ms": 30_000,
        }
        self.settings = CampaignSettings(**{**defaults, **settings})
        self.incident_devices: tuple[str, ...] = ()
        self.gateways: dict[str, tuple[str, ...]] = {}
        self.accuracy: Callable[[float], float] = lambda level: level / 10
        self.judge: Callable[[Mapping[str, Array]], dict[str, float]] | None = None
        self.calibration: CalibrationSource | None = None
        self.choose: Callable[[int], tuple[str, ...]] | None = None
        self.collecting: MakeCollecting | None = None
        self.base = BASE
        self.task = "t"
        self.participants = tuple(device.name for device in devices)
        self.phases: list[tuple[int, str]] = []
        self.kill_after_commits = -1
        self.openings_that_fail = 0

    @contextmanager
    def open_exchange(self) -> Iterator[Exchange]:
        if self.openings_that_fail:
            self.openings_that_fail -= 1
            raise ExchangeLostError("the SuperLink cannot be reached")
        exchange = FakeExchange(self.devices, self.clock)
        self.exchanges.append(exchange)
        yield exchange
        exchange.completed = True

    def evaluate(self, state: Mapping[str, Array]) -> Holdout:
        level = float(numbers(state["w"]).mean())
        return Holdout(self.accuracy(level), self.accuracy(level), 1.0)

    def on_round(self, record: RoundRecord) -> None:
        self.heard.append(record.number)
        if len(self.heard) == self.kill_after_commits:
            raise KilledError

    def run(self) -> CampaignRun:
        plan = CampaignPlan(
            campaign_id="campaign-1",
            task=self.task,
            settings=self.settings,
            participants=self.participants,
            train_step_sha256="0" * 64,
            base=self.base,
            incident_devices=self.incident_devices,
            gateways=self.gateways,
        )
        workshop = Workshop(
            plan,
            create_strategy(self.strategy, self.settings),
            self.journal,
            RoundPrivacy.of(self.settings, "campaign-1", self.journal.secret),
            self.evaluate,
            self.judge,
            self.calibration,
            clock=self.clock,
            on_phase=lambda number, phase: self.phases.append((number, phase)),
        )
        return CampaignRun(
            workshop,
            open_exchange=self.open_exchange,
            resolve=lambda exchange: exchange.resolve,  # type: ignore[attr-defined]  # a FakeExchange
            on_round=self.on_round,
            choose=self.choose,
            collecting=self.collecting,
            sleep=self.clock.sleep,
        )

    def models(self) -> list[float]:
        return [float(self.journal.load(record.parameters_sha256)["w"][0]) for record in self.journal.rounds()]


def three(**changes: object) -> list[FakeDevice]:
    # Means: (10 * 1 + 30 * 2) / 40 = 1.75 per round for a and b; c repeats their mean.
    return [
        FakeDevice("a", 1, adds=1.0, examples=10, accuracy=0.4),
        FakeDevice("b", 2, adds=2.0, examples=30, accuracy=0.6),
        FakeDevice("c", 3, adds=1.75, examples=40, accuracy=0.8),
    ]
