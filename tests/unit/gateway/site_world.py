"""A gateway over fake devices, under the clock of the test, and the same gateway as a device of a campaign."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.training.device_state import DeviceState
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import EVALUATE, TRAIN, EvaluateInstruction, EvaluateReply, TrainInstruction, TrainReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import encode_bundle
from skerry_gateway.roster import RosterFile
from skerry_gateway.site_journal import SiteJournal
from skerry_gateway.site_link import SiteLink
from skerry_gateway.worker import GatewayWorker, RoundFigures
from skerry_server.federation.exchange import Broadcast, ExchangeLostError, Reply, ReplyError
from unit.federation.fakes import Clock, FakeDevice, FakeExchange

CAMPAIGN = "campaign-1"
MODEL = {"w": np.tile(np.array([1.0, -2.0, 3.0], np.float32), 100), "b": np.zeros(2, np.float32)}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class SiteExchange(FakeExchange):
    """The site's SuperLink; it dies with the gateway after so many answers were handed over."""

    def __init__(self, devices: Collection[FakeDevice], clock: Clock, *, kill_after: int = -1) -> None:
        super().__init__(devices, clock)
        self._site = list(devices)
        self._kill_after = kill_after
        self._handed_over = 0
        self.closed = False

    def devices(self) -> Mapping[str, int]:
        return {device.name: device.node_id for device in self._site if device.node_id is not None}

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        if 0 <= self._kill_after <= self._handed_over:
            raise KilledError
        replies = super().receive(message_ids)
        self._handed_over += sum(reply.fields is not None for reply in replies)
        return replies

    def close(self) -> None:
        self.closed = True


def document(members: Iterable[str], *, quorum: float = 0.5, campaign_id: str = CAMPAIGN) -> dict[str, Any]:
    """A roster as the control plane sends it."""
    names = sorted(members)
    return {
        "gateway_id": "gw",
        "site": "plant",
        "address": "127.0.0.1:9443",
        "devices": [{"device_id": name, "node_key": f"key of {name}"} for name in names],
        "campaigns": [{"campaign_id": campaign_id, "quorum": quorum, "grace_factor": 1.0, "members": names}],
    }


class Site:
    """Files and devices of a site; :meth:`gateway` is a process over them, which a test may kill and start again."""

    def __init__(self, folder: Path, devices: list[FakeDevice], clock: Clock, *, quorum: float = 0.5) -> None:
        self.folder = folder
        self.fleet = devices
        self.clock = clock
        self.exchanges: list[SiteExchange] = []
        self.rounds: list[RoundFigures] = []
        self.openings_that_fail = 0
        RosterFile(folder / "roster.json").replace(document((d.name for d in devices), quorum=quorum), digest="1")

    def gateway(self, *, kill_after: int = -1) -> GatewayWorker:
        def open_run() -> SiteExchange:
            if self.openings_that_fail:
                self.openings_that_fail -= 1
                raise ExchangeLostError("the site's SuperLink cannot be reached")
            self.exchanges.append(SiteExchange(self.fleet, self.clock, kill_after=kill_after))
            return self.exchanges[-1]

        return GatewayWorker(
            "gw",
            RosterFile(self.folder / "roster.json"),
            SiteLink(open_run, clock=self.clock, sleep=self.clock.sleep),
            SiteJournal(self.folder / "rounds", wall=self.clock),
            DeviceState.open(self.folder / "training"),
            on_round=self.rounds.append,
            roster_s=0.0,
        )

    def train(self, gateway: GatewayWorker, **changes: Any) -> TrainReply:
        return TrainReply.from_fields(gateway.handle(TRAIN, instruction(**changes).to_fields()))

    def asked(self) -> dict[str, int]:
        return {device.name: device.asked for device in self.fleet}

    def journalled(self) -> list[str]:
        return sorted(path.name.removesuffix(".kept") for path in self.folder.glob("rounds/*/*/*.kept"))


def instruction(**changes: Any) -> TrainInstruction:
    """Round 1 of the campaign."""
    fields: dict[str, Any] = {
        "campaign_id": CAMPAIGN,
        "round": 1,
        "task": "t",
        "train_step_sha256": "0" * 64,
        "local_epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.1,
        "proximal_mu": 0.0,
        "minimum_samples": 2,
        "deadline_ms": 30_000,
        "seed": 7,
        "parameters": encode_bundle(MODEL),
    }
    return TrainInstruction(**{**fields, **changes})


def evaluation(**changes: Any) -> EvaluateInstruction:
    """Of the campaign's result."""
    fields: dict[str, Any] = {
        "campaign_id": CAMPAIGN,
        "round": 1,
        "task": "t",
        "train_step_sha256": "0" * 64,
        "model": "result",
        "deadline_ms": 30_000,
        "parameters": encode_bundle(MODEL),
    }
    return EvaluateInstruction(**{**fields, **changes})


def evaluate(gateway: GatewayWorker, **changes: Any) -> EvaluateReply:
    return EvaluateReply.from_fields(gateway.handle(EVALUATE, evaluation(**changes).to_fields()))


@dataclass
class GatewayDevice(FakeDevice):
    """The gateway as a campaign of the control plane sees it."""

    worker: GatewayWorker | None = None

    def answer(self, broadcast: Broadcast, fault: str) -> Reply | None:
        if fault:
            return super().answer(broadcast, fault)
        assert self.worker is not None
        try:
            return Reply("", fields=self.worker.handle(broadcast.kind, broadcast.fields))
        except (RefusedError, WireError) as error:
            return Reply("", error=ReplyError(str(error), refused=not isinstance(error, RefusedError) or error.final))
