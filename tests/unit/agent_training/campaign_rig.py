"""A device and a server for tests of campaigns: the real worker, trainer and disk, and arithmetic for the rest."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from skerry_agent.errors import ArtifactError
from skerry_agent.files import DISK, Disk
from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.device_state import DeviceState
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import Inputs, Labels
from skerry_agent.training.worker import CampaignWorker, PauseGate
from skerry_contract.campaign import TrainInstruction, TrainReply
from skerry_contract.counted import encode_counted
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference
from unit.agent_training.linear_graphs import LinearGraphs, linear_graphs

STEP = "ab" * 32
TASK = "moons"
NAME = "device-7"
ROW, CLASSES = (64,), 8


def graphs_of(momentum: float = 0.0, row: tuple[int, ...] = ROW, classes: int = CLASSES) -> LinearGraphs:
    return linear_graphs(row, classes, momentum=momentum)


class FullDisk(Disk):
    """Has no room while ``full``: finds that out while it writes, or is asked before."""

    def __init__(self, *, honest: bool = False) -> None:
        self.full = False
        self._honest = honest

    def free_bytes(self, folder: Path) -> int:
        return 0 if self.full and self._honest else 1 << 50

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        if self.full:
            super().write(descriptor, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data, offset)


class Samples:
    """A labelled store whose classes depend on the inputs."""

    def __init__(self, count: int = 60, *, seed: int = 1, row: int = ROW[0], classes: int = CLASSES) -> None:
        generator = np.random.default_rng(seed)
        self.x: Inputs = generator.normal(size=(count, row)).astype(np.float32)
        self.y: Labels = self.x[:, :classes].argmax(axis=1).astype(np.int64)

    def load(self) -> tuple[Inputs, Labels]:
        return self.x, self.y


class Bundles:
    """Slots that hold one train step."""

    def __init__(self, graphs: LinearGraphs) -> None:
        trainer = OnnxTrainer(graphs.step, graphs.spec, graphs.evaluate)
        self._bundle = TrainingBundle(trainer, TASK, STEP, "moons-r1")

    def open(self, train_step_sha256: str) -> TrainingBundle:
        if train_step_sha256 != STEP:
            raise ArtifactError("", "not installed")
        return self._bundle


class Device:
    """A device that can be started again."""

    def __init__(
        self,
        folder: Path | None,
        graphs: LinearGraphs,
        *,
        disk: Disk = DISK,
        samples: Samples | None = None,
        name: str = NAME,
    ) -> None:
        self.folder = folder
        self.name = name
        self.disk = disk
        self.trained = 0
        self.samples = samples or Samples()
        self._bundles = Bundles(graphs)
        self.start()

    def start(self, disk: Disk | None = None) -> None:
        """Begin with what is on disk only."""
        self.disk = disk or self.disk
        self.state = DeviceState.open(self.folder, disk=self.disk)
        gate = PauseGate((self.folder or Path("/nonexistent")) / "pause", lambda: False)
        self._worker = CampaignWorker(self.name, self._bundles, self, gate, state=self.state)

    def load(self) -> tuple[Inputs, Labels]:
        """A sample source that counts rounds of training and measuring."""
        self.trained += 1
        return self.samples.load()

    @property
    def worker(self) -> CampaignWorker:
        return self._worker

    def train(self, instruction: TrainInstruction) -> TrainReply:
        return TrainReply.from_fields(self._worker.handle("train", instruction.to_fields()))


def instruction(model: dict[str, Array], number: int = 1, **fields: object) -> TrainInstruction:
    """A round that starts from ``model``."""
    plain = TrainInstruction(
        campaign_id="campaign-1",
        round=number,
        task=TASK,
        train_step_sha256=STEP,
        local_epochs=1,
        batch_size=16,
        learning_rate=0.5,
        proximal_mu=0.0,
        minimum_samples=2,
        deadline_ms=60_000,
        seed=number,
        parameters=encode_bundle(model),
    )
    return replace(plain, **fields)  # type: ignore[arg-type]  # fields of the table


def counted(number: int) -> bytes:
    """The server's word that this device's answer of a round counted last."""
    return encode_counted("campaign-1", {NAME: number, "another": 9})


def decoded(reply: TrainReply, model: dict[str, Array]) -> dict[str, Array]:
    """The state that a server makes of an answer."""
    if reply.wire == "float32":
        return decode_bundle(reply.parameters)
    return apply_difference(model, decode_difference(reply.parameters, model, wire=reply.wire))


def follow(
    device: Device,
    graphs: LinearGraphs,
    rounds: int,
    each: Callable[[int], dict[str, object]],
) -> dict[str, Array]:
    """Rounds of a server that takes over every answer; ``each`` tells the fields of a round."""
    model = graphs.zero_state()
    for number in range(1, rounds + 1):
        model = decoded(device.train(instruction(model, number, **each(number))), model)
    return model
