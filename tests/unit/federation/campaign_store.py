"""A store with a task, a champion and three devices, a broker that may be away, and what happens to a campaign."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_contract.tensors import encode_bundle
from skerry_contract.topics import parse_topic
from skerry_contract.v1.telemetry_pb2 import Command
from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.context import ServerContext
from skerry_server.federation import service
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.service import job_id
from skerry_server.link import BrokerUnavailableError
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store import Database
from skerry_server.store.tables import (
    Base,
    Campaign,
    CampaignParticipant,
    Candidate,
    ChampionEntry,
    Cohort,
    Device,
    Job,
    Release,
)

__all__ = [
    "PARAMETERS",
    "STEP",
    "Broker",
    "age",
    "answer",
    "broker",
    "campaign",
    "context",
    "controller",
    "device",
    "finish_job",
    "start",
]

STEP = "5e" * 32
PARAMETERS = encode_bundle({"w": np.ones(3, np.float32)})


class Broker:
    """Records commands; refuses them while it is away."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, Command, int | None]] = []
        self.away = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        future: Future[None] = Future()
        if self.away:
            future.set_exception(BrokerUnavailableError("no connection"))
            return future
        assert not retain
        self.commands.append((parse_topic(topic).device_id or "", Command.FromString(payload), expiry_s))
        future.set_result(None)
        return future


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    layout = ServerLayout(tmp_path)
    ports = {
        name: 1000 + index
        for index, name in enumerate(
            (
                "api_port",
                "grpc_port",
                "broker_port",
                "broker_tls_port",
                "broker_data_port",
                "device_port",
                "superlink_port",
            )
        )
    }
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite'}")
    Base.metadata.create_all(database.engine)
    context = ServerContext(
        config=ServerConfig(**ports),
        layout=layout,
        database=database,
        artifacts=ArtifactStore(f"file://{layout.artifacts}", local=layout.artifacts),
        signer=load_or_create_key(layout),
    )
    sha256 = context.artifacts.put_bytes(PARAMETERS)
    with database.transaction() as session:
        session.add(Cohort(id="all", name="all", selector={}, created_ms=1))
        session.add(Cohort(id="cohort-7", name="north", selector={"site": "north"}, created_ms=1))
        session.add(
            Candidate(
                id="candidate-0",
                task="digits",
                origin="central",
                state="released",
                parameters_sha256=sha256,
                created_ms=1,
            )
        )
        session.add(
            Release(
                id="digits-r1",
                task="digits",
                sequence=1,
                candidate_id="candidate-0",
                origin="central",
                bundle_sha256="0" * 64,
                train_step_sha256=STEP,
                envelope=b"",
                created_ms=1,
            )
        )
        session.add(ChampionEntry(task="digits", release_id="digits-r1", reason="test", at_ms=1))
        for name in ("a", "b", "c"):
            session.add(device(name))
    yield context
    context.close()


def device(name: str, **changes: Any) -> Device:
    values: dict[str, Any] = {
        "id": name,
        "enrolled_ms": 1,
        "online": True,
        "active_release": "digits-r1",
        "flower_node_id": str(ord(name[0])),
        "labelled_samples": 60,
        **changes,
    }
    return Device(**values)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def controller(context: ServerContext, broker: Broker) -> CampaignController:
    return CampaignController(context, broker)


def start(context: ServerContext, **changes: Any) -> str:
    values: dict[str, Any] = {
        "task": "digits",
        "cohort_id": "all",
        "strategy": "fedavg",
        "settings": {"rounds": 2},
        "actor": "ada",
        **changes,
    }
    with context.database.transaction() as session:
        return service.start_campaign(session, **values).id


def campaign(context: ServerContext, campaign_id: str) -> Campaign:
    with context.database.reading() as session:
        return session.get_one(Campaign, campaign_id)


def answer(context: ServerContext, campaign_id: str, **states: str) -> None:
    with context.database.transaction() as session:
        for name, state in states.items():
            session.get_one(CampaignParticipant, (campaign_id, name)).state = state


def finish_job(context: ServerContext, campaign_id: str, *, state: str = "done", error: str = "") -> None:
    sha256 = context.artifacts.put_bytes(encode_bundle({"w": np.full(3, 2.0, np.float32)}))
    with context.database.transaction() as session:
        job = session.get_one(Job, job_id(campaign_id))
        job.state, job.error = state, error
        job.result = {"parameters_sha256": sha256, "best_round": 2, "rounds": 2, "metrics": {"device_accuracy": 0.9}}


def age(context: ServerContext, campaign_id: str, milliseconds: int) -> None:
    with context.database.transaction() as session:
        session.get_one(Campaign, campaign_id).updated_ms = now_ms() - milliseconds
