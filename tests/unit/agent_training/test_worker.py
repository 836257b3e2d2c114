"""What a device does and what it refuses, with a real trainer and sources that misbehave."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.training.bundle import StepMissingError, TrainingBundle
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import Inputs, Labels
from skerry_agent.training.worker import CampaignWorker, PauseGate, RefusedError
from skerry_contract.campaign import EvaluateInstruction, TrainInstruction
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from unit.agent_training.linear_graphs import BIAS, WEIGHT, LinearGraphs, linear_graphs

STEP = "ab" * 32


class Samples:
    """A labelled store of any content."""

    def __init__(self, count: int, *, row: int = 2) -> None:
        generator = np.random.default_rng(1)
        self.x: Inputs = generator.normal(size=(count, row)).astype(np.float32)
        self.y: Labels = (self.x[:, 0] > 0).astype(np.int64)

    def load(self) -> tuple[Inputs, Labels]:
        return self.x, self.y


class Bundles:
    """Slots that hold one train step."""

    def __init__(self, graphs: LinearGraphs) -> None:
        self._bundle = TrainingBundle(OnnxTrainer(graphs.step, graphs.spec, graphs.evaluate), "moons", STEP, "moons-r1")

    def open(self, train_step_sha256: str) -> TrainingBundle:
        if train_step_sha256 != STEP:
            raise StepMissingError(
                f"train step {train_step_sha256[:12]} is not installed, only {STEP[:12]}", code="other-step"
            )
        return self._bundle


@pytest.fixture
def graphs() -> LinearGraphs:
    return linear_graphs()


@pytest.fixture
def busy() -> list[str]:
    return []


@pytest.fixture
def stopping() -> list[bool]:
    return [False]


@pytest.fixture
def worker(graphs: LinearGraphs, tmp_path: Path, busy: list[str], stopping: list[bool]) -> CampaignWorker:
    gate = PauseGate(tmp_path / "pause", lambda: stopping[0])
    return CampaignWorker("device-7", Bundles(graphs), Samples(40), gate, on_busy=busy.append)


def instruction(state: dict[str, Array]) -> TrainInstruction:
    return TrainInstruction(
        campaign_id="campaign-1",
        round=1,
        task="moons",
        train_step_sha256=STEP,
        local_epochs=3,
        batch_size=8,
        learning_rate=0.5,
        proximal_mu=0.0,
        minimum_samples=10,
        deadline_ms=60_000,
        seed=1,
        parameters=encode_bundle(state),
    )


def test_a_round_improves_the_model_and_reports_the_received_one(
    worker: CampaignWorker, graphs: LinearGraphs, busy: list[str]
) -> None:
    reply = worker.train(instruction(graphs.zero_state()))
    state = decode_bundle(reply.parameters)
    assert (reply.device_id, list(state)) == ("device-7", [WEIGHT, BIAS])
    assert reply.examples + reply.validation_examples == 40
    assert reply.loss < np.log(2)
    assert reply.validation_loss == pytest.approx(np.log(2), rel=1e-6)  # of the zero model
    after = worker.evaluate(
        EvaluateInstruction(
            campaign_id="campaign-1",
            round=1,
            task="moons",
            train_step_sha256=STEP,
            model="result",
            deadline_ms=1000,
            parameters=reply.parameters,
        )
    )
    assert after.accuracy > reply.validation_accuracy
    assert after.examples == reply.validation_examples
    assert busy == ["campaign campaign-1 round 1", "", "campaign campaign-1 evaluation", ""]


def test_two_devices_shuffle_differently(graphs: LinearGraphs, tmp_path: Path) -> None:
    gate = PauseGate(tmp_path / "pause", lambda: False)
    replies = [
        CampaignWorker(name, Bundles(graphs), Samples(40), gate).train(instruction(graphs.zero_state())).parameters
        for name in ("one", "two", "one")
    ]
    assert replies[0] != replies[1]
    assert replies[0] == replies[2]


REFUSALS = {
    "another train step": ({"train_step_sha256": "cd" * 32}, "^other-step: train step .* is not installed"),
    "another task": ({"task": "har"}, "^other-task: train step .* belongs to task moons, not har"),
    "too few samples": ({"minimum_samples": 41}, "^few-samples: 40 labelled samples are fewer than 41"),
    "broken parameters": ({"parameters": b"\xff\xff"}, "expected a protobuf message"),
    "wrong shape": (
        {"parameters": encode_bundle({WEIGHT: np.zeros((2, 9), np.float32), BIAS: np.zeros(2, np.float32)})},
        "expected float32 (2, 2)",
    ),
    "not finite": (
        {"parameters": encode_bundle({WEIGHT: np.full((2, 2), np.inf, np.float32), BIAS: np.zeros(2, np.float32)})},
        "finite values",
    ),
    "diverging": ({"learning_rate": 1e3, "proximal_mu": 1e6, "local_epochs": 50}, "not finite|loss is"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_why(worker: CampaignWorker, graphs: LinearGraphs, busy: list[str], name: str) -> None:
    changes, reason = REFUSALS[name]
    with pytest.raises(RefusedError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        worker.train(replace(instruction(graphs.zero_state()), **changes))  # type: ignore[arg-type]  # a table of fields
    # What is wrong with the question or the device stays wrong in this round.
    assert busy[-1] == ""


def test_the_pause_ends_at_the_deadline(
    graphs: LinearGraphs, tmp_path: Path, busy: list[str], stopping: list[bool]
) -> None:
    (tmp_path / "pause").write_text("hot: too hot: 95 °C, limit 85 °C")
    worker = CampaignWorker("d", Bundles(graphs), Samples(40), PauseGate(tmp_path / "pause", lambda: stopping[0]))
    with pytest.raises(RefusedError, match=r"^hot: too hot: 95 °C, limit 85 °C; the deadline of the round has passed$"):
        worker.train(replace(instruction(graphs.zero_state()), deadline_ms=120))
    (tmp_path / "pause").unlink()
    assert worker.train(instruction(graphs.zero_state())).steps > 0


def test_a_stop_interrupts(worker: CampaignWorker, graphs: LinearGraphs, stopping: list[bool]) -> None:
    stopping[0] = True
    with pytest.raises(RefusedError, match="the agent is stopping") as caught:
        worker.train(instruction(graphs.zero_state()))
    assert not caught.value.final  # the device may be asked again when it is back


def test_samples_of_another_task_are_refused(graphs: LinearGraphs, tmp_path: Path) -> None:
    worker = CampaignWorker("d", Bundles(graphs), Samples(40, row=5), PauseGate(tmp_path / "p", lambda: False))
    with pytest.raises(RefusedError, match="samples"):
        worker.train(instruction(graphs.zero_state()))


def test_the_gate_asks_the_file(tmp_path: Path) -> None:
    gate = PauseGate(tmp_path / "pause", lambda: False)
    should_pause = gate.until(time.monotonic() + 60)
    assert not should_pause()
    (tmp_path / "pause").touch()
    assert should_pause()
