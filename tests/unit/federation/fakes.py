"""Devices and an exchange that misbehave on request, under a clock that only the test moves."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from skerry_contract.campaign import NO_BASE, TRAIN, EvaluateReply, TrainReply
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference, difference, encode_difference
from skerry_server.federation.exchange import Broadcast, ExchangeLostError, Reply, ReplyError


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


@dataclass
class FakeDevice:
    """A device that adds a number to every parameter.

    Attributes:
        node_id: Where it is reached; None while it is away.
        delay_s: From question to answer; a queue gives one delay per question.
        faults: What goes wrong with the next answers, one each: "silent", "error", "refuse", "nan", "shape", "names",
            "garbage", "twice", "other-device", "lost" (the run is lost when the answer is due), "unreachable".
        personal_accuracy: Of its own model; -1 without one.
        refuses_wires: Whether it can encode nothing but "float32".
        models: What it was given, by digest.
        wires: Of each question: how the model came, and how the answer was asked for.
    """

    name: str
    node_id: int | None
    adds: float = 1.0
    examples: int = 10
    delay_s: float = 0.1
    accuracy: float = 0.5
    personal_accuracy: float = -1.0
    faults: deque[str] = field(default_factory=deque)
    asked: int = 0
    refuses_wires: bool = False
    models: dict[str, dict[str, Array]] = field(default_factory=dict)
    wires: list[tuple[str, str]] = field(default_factory=list)

    def model(self, broadcast: Broadcast) -> dict[str, Array] | None:
        """The model of a training question, kept by its digest; None when it lacks the base of a difference."""
        fields = broadcast.fields
        data, wire = fields["parameters"], str(fields.get("parameters_wire", "float32"))
        assert isinstance(data, bytes)
        if wire == "float32":
            model = decode_bundle(data)
        else:
            base = self.models.get(str(fields["base_sha256"]))
            if base is None:
                return None
            model = apply_difference(base, decode_difference(data, base, wire=wire))
        self.models[hashlib.sha256(encode_bundle(model)).hexdigest()] = model
        return model

    def encoded(self, model: dict[str, Array], state: dict[str, Array], wire: str, seed: int) -> bytes:
        """A trained state as the question wants it."""
        if wire == "float32":
            return encode_bundle(state)
        return encode_difference(difference(state, model), wire=wire, density=0.5, seed=seed)[0]

    def answer(self, broadcast: Broadcast, fault: str) -> Reply | None:
        """The answer to a question; its message identifier is filled in later."""
        if fault == "error":
            return Reply("", error=ReplyError("RuntimeError: out of memory", refused=False))
        if fault == "refuse":
            return Reply("", error=ReplyError("few-samples: 3 labelled samples are fewer than 20", refused=True))
        if fault == "garbage":
            return Reply("", fields={"device_id": self.name, "examples": "many"})
        name = "somebody-else" if fault == "other-device" else self.name
        if broadcast.kind != TRAIN:
            reply = EvaluateReply(
                device_id=name,
                examples=5,
                accuracy=self.accuracy,
                loss=0.3,
                personal_accuracy=self.personal_accuracy,
            )
            return Reply("", fields=reply.to_fields())
        wire = str(broadcast.fields.get("wire", "float32"))
        self.wires.append((str(broadcast.fields.get("parameters_wire", "float32")), wire))
        if self.refuses_wires and wire != "float32":
            return Reply("", error=ReplyError(f"wire: expected float32, got {wire}", refused=True))
        model = self.model(broadcast)
        if model is None:
            return Reply("", error=ReplyError(f"{NO_BASE}: not here", refused=False))
        state: dict[str, Array] = {
            key: np.asarray(array).astype(np.float32) + np.float32(self.adds) for key, array in model.items()
        }
        if fault == "nan":
            state["w"] = np.full_like(state["w"], np.nan)
        if fault == "shape":
            state["w"] = np.zeros(99, np.float32)
        if fault == "names":
            state["extra"] = np.zeros(1, np.float32)
        train = TrainReply(
            device_id=name,
            examples=self.examples,
            steps=3,
            seconds=0.1,
            loss=0.5,
            validation_examples=5,
            validation_accuracy=self.accuracy,
            validation_loss=0.4,
            parameters=self.encoded(model, state, wire, self.asked) if wire != "float32" else encode_bundle(state),
            wire=wire,
            personal_accuracy=self.personal_accuracy,
        )
        return Reply("", fields=train.to_fields())


class FakeExchange:
    """Implements Exchange over fake devices."""

    def __init__(self, devices: Collection[FakeDevice], clock: Clock) -> None:
        self._devices = list(devices)
        self._clock = clock
        self._due: list[tuple[float, str, Reply | None]] = []
        self._count = 0
        self.broadcasts: list[Broadcast] = []
        self.completed = False

    def nodes(self) -> set[int]:
        return {device.node_id for device in self._devices if device.node_id is not None}

    def resolve(self) -> Mapping[str, int | None]:
        """Devices with their nodes, as the control plane sees them."""
        return {device.name: device.node_id for device in self._devices}

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        self.broadcasts.append(broadcast)
        sent: dict[int, str] = {}
        for device in self._devices:
            if device.node_id not in node_ids or device.node_id is None:
                continue
            device.asked += 1
            fault = device.faults.popleft() if device.faults else ""
            if fault == "unreachable":
                continue
            self._count += 1
            message_id = f"message-{self._count}"
            sent[device.node_id] = message_id
            at = self._clock() + device.delay_s
            if fault == "lost":
                self._due.append((at, "", None))
            elif fault != "silent":
                self._due.append((at, message_id, device.answer(broadcast, fault)))
                if fault == "twice":
                    self._due.append((at + 0.2, message_id, device.answer(broadcast, "")))
        return sent

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        arrived = [entry for entry in self._due if entry[0] <= self._clock()]
        self._due = [entry for entry in self._due if entry[0] > self._clock()]
        replies: list[Reply] = []
        for _, message_id, reply in arrived:
            if reply is None:
                raise ExchangeLostError("the SuperLink was killed")
            replies.append(Reply(message_id, fields=reply.fields, error=reply.error))
        return replies
