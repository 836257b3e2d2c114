"""The ranges that a device tells, with a real graph by hand, and what it keeps to itself or refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.calibrating import CalibrationWorker
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import Inputs, Labels
from skerry_agent.training.worker import CampaignWorker, PauseGate, RefusedError
from skerry_contract.calibration import TensorRanges, decode_ranges, encode_ranges
from skerry_contract.campaign import CALIBRATE, CalibrateInstruction, CalibrateReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, encode_bundle
from unit.agent_training.linear_graphs import BIAS, WEIGHT, LinearGraphs, linear_graphs, with_ranges

STEP = "ab" * 32
STATE: dict[str, Array] = {WEIGHT: np.array([[1, 0], [0, -2]], np.float32), BIAS: np.array([0.5, 0], np.float32)}


class Samples:
    """Row i is (i, -i)."""

    def __init__(self, count: int = 100) -> None:
        self.x: Inputs = np.outer(np.arange(count), [1, -1]).astype(np.float32)
        self.y: Labels = np.zeros(count, np.int64)

    def load(self) -> tuple[Inputs, Labels]:
        return self.x, self.y


class Device:
    """A worker over one bundle, with everything that a test turns."""

    def __init__(self, folder: Path) -> None:
        graphs: LinearGraphs = linear_graphs()
        self.graph = with_ranges(graphs.evaluate, ("rows", "scores"))
        trainer = OnnxTrainer(graphs.step, graphs.spec, graphs.evaluate)
        self.bundle = TrainingBundle(trainer, "moons", STEP, "moons-r1", self.graph)
        self.samples = Samples()
        self.pause = folder / "pause"
        self.stopping = False
        self.busy: list[str] = []
        gate = PauseGate(self.pause, lambda: self.stopping)
        self.worker = CampaignWorker("device-7", self, self.samples, gate, on_busy=self.busy.append)
        self.runs = 0
        calibration = CalibrationWorker("device-7", self.worker, self.samples, run=self.run)
        self.worker.add_handlers({CALIBRATE: calibration.handle})

    def open(self, train_step_sha256: str) -> TrainingBundle:
        return self.bundle

    def run(self, action: Callable[[], Any]) -> Any:
        self.runs += 1
        return action()

    def instruction(self, **changes: Any) -> CalibrateInstruction:
        parameters = encode_bundle(STATE)
        ends = {"rows": (-60.0, 60.0), "scores": (-1.0, 120.0)}
        reference = TensorRanges(hashlib.sha256(self.graph).digest(), hashlib.sha256(parameters).digest(), ends, 10)
        fields: dict[str, Any] = {
            "campaign_id": "campaign-1",
            "round": 3,
            "task": "moons",
            "train_step_sha256": STEP,
            "graph_sha256": hashlib.sha256(self.graph).hexdigest(),
            "minimum_samples": 20,
            "maximum_rows": 512,
            "deadline_ms": 60_000,
            "parameters": parameters,
            "reference": encode_ranges(reference),
        }
        return CalibrateInstruction(**(fields | changes))

    def ask(self, **changes: Any) -> TensorRanges:
        told = self.worker.handle(CALIBRATE, self.instruction(**changes).to_fields())
        reply = CalibrateReply.from_fields(told)
        assert reply.device_id == "device-7"
        return decode_ranges(reply.ranges)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_the_ranges_by_hand(device: Device) -> None:
    told = device.ask()
    # Rows (i, -i) for i to 99; scores (i + 0.5, 2 i).
    assert told.ranges == {"rows": (-99, 99), "scores": (0, 198)}
    assert (told.rows, told.devices, device.runs) == (100, 1, 1)
    assert told.graph_sha256 == hashlib.sha256(device.graph).digest()
    assert told.parameters_sha256 == hashlib.sha256(encode_bundle(STATE)).digest()
    assert device.busy == ["campaign campaign-1 calibration", ""]


@pytest.mark.parametrize(("most", "rows", "last"), [(10, 10, 90), (33, 25, 96), (99, 50, 98), (1, 1, 0)])
def test_at_most_so_many_rows_are_looked_at_over_the_whole_store(
    device: Device, most: int, rows: int, last: int
) -> None:
    told = device.ask(maximum_rows=most)
    assert (told.rows, told.ranges["rows"][1]) == (rows, last)


def refusal(device: Device, **changes: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        device.ask(**changes)
    assert device.busy[-1:] == [""]
    return caught.value


def test_what_a_device_refuses(device: Device) -> None:
    bad = {**STATE, BIAS: np.zeros(3, np.float32)}
    infinite = {**STATE, BIAS: np.array([np.inf, 0], np.float32)}
    stories: list[tuple[dict[str, Any], str]] = [
        ({"graph_sha256": "0" * 64}, "other-release: moons-r1 has another calibrate.onnx"),
        ({"minimum_samples": 101}, "few-samples: 100 labelled samples are fewer than 101"),
        ({"task": "digits"}, "other-task: "),
        ({"parameters": encode_bundle(bad)}, "parameters"),
        ({"parameters": encode_bundle(infinite)}, "finite"),
        ({"parameters": b"\xff" * 9}, "TensorBundle"),
        ({"reference": b"\xff" * 9}, "ActivationRanges"),
        ({"reference": b""}, "graph_sha256"),
    ]
    for changes, reason in stories:
        error = refusal(device, **changes)
        assert reason in error.reason, (changes, error.reason)
        assert error.final
    assert device.runs == 0


def test_a_release_without_the_graph_says_so(device: Device) -> None:
    device.bundle = replace(device.bundle, calibrate=b"")
    assert refusal(device).reason == "other-release: no calibrate.onnx here"


def test_far_from_what_the_control_plane_knows_nothing_is_told(device: Device) -> None:
    device.samples.x[7] = (241.0, 0.0)
    assert refusal(device).reason == "on its samples rows is beyond 4 times the reference"
    device.samples.x[7] = (239.0, 0.0)
    assert device.ask().ranges["rows"] == (-99, 239)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.full((40, 2), np.nan, np.float32), "finite values"),
        (np.zeros((40, 3), np.float32), "inputs of shape [N, 2]"),
        (np.zeros((40, 2, 1), np.float32), "inputs of shape [N, 2]"),
    ],
)
def test_samples_that_do_not_fit(device: Device, rows: Inputs, reason: str) -> None:
    device.samples.x = rows
    assert reason in refusal(device).reason


def test_a_graph_that_is_none(device: Device) -> None:
    for model in (b"no graph", with_ranges(linear_graphs((3,), 2).evaluate, ("scores",))):
        device.bundle = replace(device.bundle, calibrate=model)
        assert refusal(device, graph_sha256=hashlib.sha256(model).hexdigest()).final


def test_huge_parameters_give_no_infinite_range(device: Device) -> None:
    huge = {**STATE, WEIGHT: np.full((2, 2), 3e38, np.float32)}
    assert "finite" in refusal(device, parameters=encode_bundle(huge)).reason


def test_a_pause_holds_it_until_the_deadline_and_a_stop_ends_it(device: Device) -> None:
    device.pause.write_text("hot: 95 °C")
    error = refusal(device, deadline_ms=1)
    assert not error.final
    assert "the deadline of the round has passed" in error.reason
    device.stopping = True
    error = refusal(device)
    assert (error.reason, error.final) == ("the agent is stopping", False)


def test_garbage_is_refused_before_anything_is_done(device: Device) -> None:
    garbage: tuple[object, ...] = (0, -1, float("nan"), True, "", None, [], b"\x00")
    for name in ("maximum_rows", "minimum_samples", "deadline_ms", "graph_sha256", "parameters", "reference"):
        for value in garbage:
            fields: dict[str, object] = {**device.instruction().to_fields(), name: value}
            with pytest.raises((WireError, RefusedError)):
                device.worker.handle(CALIBRATE, fields)
    assert device.runs == 0
