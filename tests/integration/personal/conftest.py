"""An enrolled device with a trainable release, its labelled samples, and what keeps its own parameters proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.engine.tiny_bundle import SIGNER, enrol
from integration.personal.linear_release import own_people
from skerry_agent import Engine
from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk
from skerry_agent.training.bundle import TrainingBundles
from skerry_agent.training.labelled_store import LabelledSample, LabelledStore
from skerry_agent.training.personal import PersonalParameters
from skerry_agent.training.personal_forms import PersonalForms
from skerry_agent.training.personaliser import Personaliser
from skerry_agent.training.trainer import ShouldPause
from skerry_contract.signing import Ed25519Verifier
from skerry_contract.v1.telemetry_pb2 import DriftReport, UplinkMessage


class Sink:
    """An outbox in memory."""

    def __init__(self) -> None:
        self.windows: list[DriftReport] = []

    def enqueue(self, message: UplinkMessage) -> int:
        self.windows.append(message.drift)
        return len(self.windows)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Training:
    """The part of the training process that proves own parameters."""

    def __init__(
        self,
        layout: AgentLayout,
        patterns: tuple[str, ...] = (),
        *,
        pause: ShouldPause = lambda: False,
        disk: Disk = DISK,
    ) -> None:
        keys = Ed25519Verifier([SIGNER.public_key])
        self.clock = Clock()
        self.opened = 0
        self.kept = PersonalParameters(layout.training_state / "personal")
        self.forms = PersonalForms(layout.personal_forms, disk=disk)
        self.samples = LabelledStore(layout.labelled, 5000)

        def open_bundles() -> TrainingBundles:
            self.opened += 1
            return TrainingBundles(layout, keys)

        self.personaliser = Personaliser(
            layout,
            keys,
            samples=self.samples,
            kept=PersonalParameters(layout.training_state / "personal"),
            forms=self.forms,
            open_bundles=open_bundles,
            pause=lambda deadline: pause,
            patterns=patterns,
            wall_ms=lambda: 1_700_000_000_000,
            monotonic=self.clock,
        )

    def label(self, count: int, seed: int = 3) -> None:
        """People of this device answer."""
        x, y = own_people(count, seed)
        self.samples.add_many([LabelledSample(f"{seed}-{i}", 0, x[i], int(y[i])) for i in range(count)])

    def look(self) -> None:
        """A look that is not too early."""
        self.clock.now += 100.0
        self.personaliser.step()


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    made = enrol(tmp_path / "device")
    made.run.mkdir()  # by the serving process, before it opens the engine
    return made


@pytest.fixture
def make_training(layout: AgentLayout) -> Iterator[Callable[..., Training]]:
    made: list[Training] = []

    def make(*patterns: str, **options: Any) -> Training:
        made.append(Training(layout, patterns, **options))
        return made[-1]

    yield make
    for training in made:
        training.samples.close()


@pytest.fixture
def training(make_training: Callable[..., Training]) -> Training:
    return make_training()


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def open_engine(layout: AgentLayout, sink: Sink) -> Callable[..., Engine]:
    return lambda **options: Engine.open(layout.root, open_sink=lambda: sink, **options)
