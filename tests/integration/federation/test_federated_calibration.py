"""From devices with real data to INT8: a campaign in one process whose devices calibrate its result.

The digits run takes some seconds of one core; the activity task is a soak test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.calibrating import CalibrationWorker
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import Inputs, Labels
from skerry_agent.training.worker import CampaignWorker, PauseGate, RefusedError
from skerry_contract.calibration import TensorRanges
from skerry_contract.campaign import CALIBRATE
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array
from skerry_models.bundle import BundleReport, build_bundle
from skerry_models.calibrate import calibration_graph
from skerry_models.evaluation import evaluate_onnx
from skerry_models.export import export_inference
from skerry_models.fitting import fit
from skerry_models.kept_step import TrainStep, train_step_for
from skerry_models.parameters import decode_state, encode_state
from skerry_models.quantise import INT8_QDQ, INT8_X86, quantise
from skerry_models.task import CENTRAL, HOLDOUT, Dataset, Task, concatenate, load_task
from skerry_server.federation.exchange import Broadcast, Reply, ReplyError
from skerry_server.federation.rounds.calibration_source import CalibrationSource, OnnxReference
from skerry_server.federation.rounds.holdout import OnnxHoldout
from skerry_server.federation.rounds.workshop import Holdout
from skerry_server.releases.candidate_calibration import NOTE, PAYLOAD, build_calibrated
from unit.federation.fakes import FakeDevice
from unit.federation.world import World

#: Largest loss of accuracy against central calibration.
BAR = 0.003


class Store:
    """A labelled store."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def load(self) -> tuple[Inputs, Labels]:
        return self._rows.x, self._rows.y


class Slots:
    """The installed release."""

    def __init__(self, bundle: TrainingBundle) -> None:
        self._bundle = bundle

    def open(self, train_step_sha256: str) -> TrainingBundle:
        return self._bundle


@dataclass
class RealDevice(FakeDevice):
    """Answers with the worker of the agent."""

    worker: CampaignWorker | None = None

    def answer(self, broadcast: Broadcast, fault: str) -> Reply | None:
        assert self.worker is not None
        try:
            return Reply("", fields=self.worker.handle(broadcast.kind, broadcast.fields))
        except (RefusedError, WireError) as error:
            return Reply("", error=ReplyError(str(error), refused=True))


class Chain(World):
    """A campaign whose rounds are judged on real rows."""

    judge_rows: OnnxHoldout

    def evaluate(self, state: Mapping[str, Array]) -> Holdout:
        return self.judge_rows(state)


@dataclass(frozen=True)
class Made:
    """A campaign's result as a candidate.

    Attributes:
        report: Bundle that the devices calibrated.
        calibration: Outcome of the campaign.
        judged: Rows that nobody calibrated with, and the devices' own.
    """

    task: Task
    state: dict[str, Array]
    report: BundleReport
    calibration: dict[str, object]
    judged: Dataset


def run(name: str, folder: Path) -> Made:
    task = load_task(name)
    central, holdout = task.source(CENTRAL), task.source(HOLDOUT)
    base = fit(task, central, settings=replace(task.default_training, epochs=10))
    graphs = export_inference(task, base, central.x)
    graph = calibration_graph(graphs)
    step, _ = train_step_for(task, base, central, None)
    bundle = TrainingBundle(
        OnnxTrainer(step.model, step.spec, graphs.evaluate), name, "0" * 64, "base", calibrate=graph
    )
    people = {person: task.source(f"client/{person}") for person in task.client_names()}
    devices: list[FakeDevice] = []
    for number, (person, rows) in enumerate(people.items()):
        store, gate = Store(rows), PauseGate(folder / "pause", lambda: False)
        worker = CampaignWorker(person, Slots(bundle), store, gate)
        calibration = CalibrationWorker(person, worker, store, run=lambda action: action())
        worker.add_handlers({CALIBRATE: calibration.handle})
        devices.append(RealDevice(person, number + 1, worker=worker))
    defaults = task.default_campaign
    world = Chain(
        folder,
        devices,
        rounds=1,
        local_epochs=1,
        batch_size=defaults.batch_size,
        learning_rate=defaults.learning_rate,
        calibration="federated",
    )
    world.task, world.base = name, encode_state(base)
    world.judge_rows = OnnxHoldout(graphs.evaluate, holdout, base)
    reference = OnnxReference(graph, central)
    world.calibration = CalibrationSource(reference, folder / "calibration.json", world.artifacts.put_bytes)
    result = world.run().run()
    state = decode_state(task, world.artifacts.get_bytes(result.best.parameters_sha256))

    def build(ranges: TensorRanges | None, notes: Mapping[str, object]) -> BundleReport:
        return build_bundle(
            task,
            state,
            folder / "bundle",
            reference=central,
            calibration=central,
            holdout=holdout,
            lineage=dict(notes),
            parent_step=TrainStep(step.model, step.spec),
            ranges=ranges,
        )

    report = build_calibrated({PAYLOAD: result.calibration}, world.artifacts, build)
    judged = concatenate([holdout, task.source("unseen"), *people.values()])
    return Made(task, state, report, result.calibration, judged)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["digits", pytest.param("har", marks=pytest.mark.soak)])
def test_devices_calibrate_as_well_as_the_control_plane(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "har":
        request.getfixturevalue("data_dir")
    made = run(name, tmp_path)
    devices = len(made.task.client_names())
    assert (made.calibration["source"], made.calibration["reason"]) == ("devices", "")
    assert devices * 0.5 <= float(str(made.calibration["devices"])) <= devices
    told = {"source": "devices", "devices": made.calibration["devices"], "rows": made.calibration["rows"]}
    lineage = json.loads((made.report.folder / "lineage.json").read_text())
    assert lineage["calibration"] == told
    assert NOTE not in lineage
    card = (made.report.folder / "model_card.md").read_text()
    assert f"Calibrated on {told['devices']} devices" in card
    central = made.task.source(CENTRAL)
    cloud = quantise(export_inference(made.task, made.state, central.x).infer, central.x)
    for file, theirs in ((INT8_QDQ, cloud.canonical), (INT8_X86, cloud.x86)):
        ours = (made.report.folder / file).read_bytes()
        assert ours != theirs  # the ranges are other ones
        accuracies = [evaluate_onnx(model, made.judged, optimise=False).accuracy for model in (ours, theirs)]
        print(f"{name} {file}: {accuracies[0]:.4f} by {told['devices']} devices, {accuracies[1]:.4f} by the cloud")
        assert math.isfinite(accuracies[0])
        assert accuracies[0] >= accuracies[1] - BAR
