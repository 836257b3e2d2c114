"""The activity task on real data, in short training: INT8 within a point, and what the drift costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from skerry_contract.calibration import merge_ranges
from skerry_models.activation_ranges import measure_ranges
from skerry_models.calibrate import calibrate, calibration_graph
from skerry_models.canonical_lint import lint_canonical
from skerry_models.evaluation import evaluate_onnx, evaluate_parameters
from skerry_models.export import export_inference
from skerry_models.fitting import fit
from skerry_models.parameters import State
from skerry_models.quantise import quantise, quantise_with
from skerry_models.task import Dataset, concatenate
from skerry_models.tasks.har import HarTask


@dataclasses.dataclass(frozen=True)
class Trained:
    """The task with a model of few epochs."""

    task: HarTask
    state: State


@pytest.fixture(scope="module")
def trained(data_dir: Path) -> Trained:
    task = HarTask()
    settings = dataclasses.replace(task.default_training, epochs=4)
    return Trained(task, fit(task, task.source("central"), settings=settings))


def test_int8_is_within_a_point_and_canonical(trained: Trained) -> None:
    task, holdout = trained.task, trained.task.source("holdout")
    graphs = export_inference(task, trained.state, holdout.x)
    quantised = quantise(graphs.infer, task.source("central").x)
    fp32 = evaluate_onnx(graphs.infer, holdout)
    assert fp32.accuracy == pytest.approx(evaluate_parameters(task, trained.state, holdout).accuracy)
    for model in (quantised.canonical, quantised.x86):
        assert evaluate_onnx(model, holdout).accuracy >= fp32.accuracy - 0.01
    assert lint_canonical(onnx.load_from_string(quantised.canonical)) == []
    assert len(quantised.canonical) < len(graphs.infer) / 2


def test_people_calibrate_as_well_as_the_cloud(trained: Trained) -> None:
    task, state, central = trained.task, trained.state, trained.task.source("central")
    people = [task.source(f"client/{name}") for name in task.client_names()]
    graphs = export_inference(task, state, central.x[:8])
    graph = calibration_graph(graphs)
    merged = merge_ranges(measure_ranges(graph, person.x, state) for person in people)
    by_people = quantise_with(graphs.infer, calibrate(graphs, state, central.x, merged).ranges.ranges)
    by_cloud = quantise(graphs.infer, central.x)
    judged = concatenate([task.source("holdout"), task.source("unseen"), *people])
    for ours, theirs in ((by_people.canonical, by_cloud.canonical), (by_people.x86, by_cloud.x86)):
        assert ours != theirs
        accuracies = [evaluate_onnx(model, judged, optimise=False).accuracy for model in (ours, theirs)]
        assert accuracies[0] >= accuracies[1] - 0.003, accuracies


def test_drift_costs_accuracy_and_training_on_it_brings_it_back(trained: Trained) -> None:
    task = trained.task
    people = [task.source(f"client/{name}") for name in task.client_names()[:2]]
    drifted = [Dataset(task.apply_drift(data.x, seed), data.y) for seed, data in enumerate(people)]
    rows = Dataset(np.concatenate([d.x for d in drifted]), np.concatenate([d.y for d in drifted]))
    train, test = rows.split(0.7, seed=0)
    clean = evaluate_parameters(task, trained.state, Dataset(np.concatenate([d.x for d in people]), rows.y)).accuracy
    before = evaluate_parameters(task, trained.state, test).accuracy
    assert before < clean - 0.3
    settings = dataclasses.replace(task.default_training, epochs=4)
    after = evaluate_parameters(task, fit(task, train, settings=settings, initial=trained.state), test).accuracy
    assert after > (clean + before) / 2
