"""A fleet of real device sides of secure aggregation, and an exchange that loses, doubles, reorders and changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import AgentError
from skerry_agent.identity.certificate import make_request, new_key, read_certificate, request_to_pem
from skerry_agent.identity.identity_files import Identity
from skerry_agent.training.secure_aggregation import SecureAggregationWorker
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import Scalar, TrainInstruction, TrainReply
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_server.federation.exchange import Broadcast, Reply, ReplyError
from skerry_server.federation.secure_aggregation.secure_round import SecureRound, SecureRules
from skerry_server.fleet.authority import CertificateAuthority
from unit.federation.fakes import Clock

NOW = datetime(2030, 1, 1, tzinfo=UTC)
#: Changes the fields of an answer or question of (device, kind, fields); None loses it.
Tamper = Callable[[str, str, dict[str, Any]], dict[str, Any] | None]


@lru_cache(maxsize=1)
def authority() -> CertificateAuthority:
    """The fleet's authority."""
    return CertificateAuthority.create(now=NOW)


def identity_of(device_id: str, issuer: CertificateAuthority, *, named: str = "") -> Identity:
    """A device's identity; ``named`` puts another name into the certificate."""
    key = new_key()
    pem = issuer.issue_device(
        request_to_pem(make_request(key, device_id)).encode(), device_id=named or device_id, now=NOW
    )
    return Identity(key, Path("key.pem"), pem, issuer.certificate_pem, read_certificate(pem))


@lru_cache(maxsize=256)
def identity(device_id: str) -> Identity:
    """The identity that the fleet's authority certified."""
    return identity_of(device_id, authority())


def model() -> dict[str, Array]:
    """Two floating tensors and a counter, which is not aggregated."""
    return {
        "layer.weight": np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10),
        "layer.bias": np.zeros(7, dtype=np.float32),
        "steps": np.array(3, dtype=np.int64),
    }


def instruction(number: int = 1, **changes: Any) -> TrainInstruction:
    """Asks to train :func:`model`."""
    values: dict[str, Any] = {
        "campaign_id": "campaign-a",
        "round": number,
        "task": "moons",
        "train_step_sha256": "ab" * 32,
        "local_epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.1,
        "proximal_mu": 0.0,
        "minimum_samples": 1,
        "deadline_ms": 60_000,
        "seed": 1,
        "parameters": encode_bundle(model()),
    }
    return TrainInstruction(**{**values, **changes})


class SecureDevice:
    """A device whose training adds a known difference."""

    def __init__(self, name: str, node_id: int, clock: Clock, own: Identity | None = None) -> None:
        generator = np.random.default_rng(node_id)
        self.name = name
        self.node_id: int | None = node_id
        self.examples = 10 + node_id
        self.trainings = 0
        self.interruptions = 0
        self.moves: dict[str, npt.NDArray[np.float32]] = {
            key: generator.normal(0, 0.3, array.shape).astype(np.float32)
            for key, array in model().items()
            if array.dtype.kind == "f"
        }
        self._own = own or identity(name)
        self._clock = clock
        self.worker = self._start()

    def _start(self) -> SecureAggregationWorker:
        return SecureAggregationWorker(self.name, lambda: self._own, self.train, clock=self._clock)

    def restart(self) -> None:
        """Another process: everything in memory is gone."""
        self.worker = self._start()

    def train(self, asked: TrainInstruction) -> TrainReply:
        """What CampaignWorker.train does, without gradients."""
        if self.interruptions:
            self.interruptions -= 1
            raise RefusedError("answers were too slow", final=False)
        self.trainings += 1
        state = dict(decode_bundle(asked.parameters))
        for key, move in self.moves.items():
            state[key] = np.asarray(state[key], dtype=np.float32) + move
        return TrainReply(
            device_id=self.name,
            examples=self.examples,
            steps=3,
            seconds=0.1,
            loss=0.5,
            validation_examples=4,
            validation_accuracy=0.75,
            validation_loss=0.25,
            parameters=encode_bundle(state),
        )


@dataclass
class SecureExchange:
    """Implements Exchange.

    Attributes:
        lost: (device, kind) whose answers never arrive.
        doubled: Every question is asked twice, and every answer arrives twice.
        newest_first: Answers arrive in the wrong order.
        answer: Changes answers.
        question: Changes questions on their way to a device.
        view: Every answer as the control plane saw it: (device, kind, fields).
    """

    devices: list[SecureDevice]
    clock: Clock
    lost: set[tuple[str, str]] = field(default_factory=set)
    doubled: bool = False
    newest_first: bool = False
    answer: Tamper = lambda device, kind, fields: fields
    question: Tamper = lambda device, kind, fields: fields
    view: list[tuple[str, str, Mapping[str, Scalar]]] = field(default_factory=list)
    down_bytes: int = 0
    up_bytes: int = 0
    _due: list[Reply] = field(default_factory=list)
    _count: int = 0

    def nodes(self) -> set[int]:
        return {device.node_id for device in self.devices if device.node_id is not None}

    def resolve(self) -> Mapping[str, int | None]:
        """Devices with their nodes."""
        return {device.name: device.node_id for device in self.devices}

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        sent: dict[int, str] = {}
        for device in self.devices:
            if device.node_id is None or device.node_id not in node_ids:
                continue
            self._count += 1
            message_id = sent[device.node_id] = f"m{self._count}"
            question = self.question(device.name, broadcast.kind, dict(broadcast.fields))
            if question is None:
                continue
            self.down_bytes += _size(question)
            for _ in range(2 if self.doubled else 1):
                reply = self._reply(device, broadcast.kind, question, message_id)
                if reply is not None:
                    self._due.append(reply)
        return sent

    def _reply(self, device: SecureDevice, kind: str, question: dict[str, Any], message_id: str) -> Reply | None:
        try:
            fields: dict[str, Any] | None = device.worker.handle(kind, question)
        except RefusedError as error:
            return Reply(message_id, error=ReplyError(error.reason, refused=error.final))
        except AgentError as error:
            return Reply(message_id, error=ReplyError(str(error), refused=False))
        if (device.name, kind) in self.lost:
            return None
        fields = self.answer(device.name, kind, dict(fields or {}))
        if fields is None:
            return None
        self.up_bytes += _size(fields)
        self.view.append((device.name, kind, fields))
        return Reply(message_id, fields=fields)

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        due, self._due = self._due, []
        return due[::-1] if self.newest_first else due


def _size(fields: Mapping[str, Any]) -> int:
    return sum(len(value) if isinstance(value, bytes | str) else 8 for value in fields.values())


def fleet(count: int, clock: Clock) -> list[SecureDevice]:
    """Devices device-000, device-001, ..."""
    return [SecureDevice(f"device-{index:03d}", index + 1, clock) for index in range(count)]


def rules(count: int, **changes: Any) -> SecureRules:
    """Two thirds are needed."""
    values: dict[str, Any] = {"minimum": max(3, 2 * count // 3), "deadline_s": 60.0, "phase_s": 20.0}
    return SecureRules(**{**values, **changes})


def secure_round(exchange: SecureExchange) -> SecureRound:
    """Over that exchange."""
    return SecureRound(
        exchange,
        exchange.resolve,
        authority_pem=authority().certificate_pem,
        clock=exchange.clock,
        sleep=exchange.clock.sleep,
    )


def expected_mean(devices: Iterable[SecureDevice]) -> dict[str, npt.NDArray[np.float64]]:
    """The weighted mean in the clear."""
    chosen = list(devices)
    total = sum(device.examples for device in chosen)
    return {
        key: np.asarray(sum(device.examples * device.moves[key].astype(np.float64) for device in chosen) / total)
        for key in chosen[0].moves
    }
