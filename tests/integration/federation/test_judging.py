"""Holdout figures without torch are torch's, and the INT8 forms that are judged are those of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from skerry_contract.tensors import Array
from skerry_models.bound_graph import bind_parameters
from skerry_models.errors import BundleError, DataError
from skerry_models.evaluation import evaluate_onnx, evaluate_parameters
from skerry_models.export import InferenceGraphs, export_inference
from skerry_models.parameters import initial_parameters
from skerry_models.quantise import quantise
from skerry_models.task import CENTRAL, HOLDOUT, UNSEEN, Dataset, Task, load_task
from skerry_server.federation.rounds.deployed import ACCURACY, DeployedJudge, cohorts_of
from skerry_server.federation.rounds.holdout import OnnxHoldout


@dataclass
class Exported:
    """A task, one export of it with its state, and another state."""

    task: Task
    graphs: InferenceGraphs
    first: Mapping[str, Array]
    state: Mapping[str, Array]
    holdout: Dataset


@pytest.fixture(scope="module")
def exported() -> Exported:
    task = load_task("digits")
    first = initial_parameters(task, 0)
    graphs = export_inference(task, first, task.source(CENTRAL).x)
    rng = np.random.default_rng(5)
    state = {
        name: (np.asarray(array, np.float64) + rng.normal(0, 0.1, array.shape)).astype(array.dtype)
        for name, array in first.items()
    }
    return Exported(task, graphs, first, state, task.source(HOLDOUT))


def test_the_holdout_without_torch_gives_the_figures_of_torch(exported: Exported) -> None:
    ours = OnnxHoldout(exported.graphs.evaluate, exported.holdout, exported.state)(exported.state)
    torch = evaluate_parameters(exported.task, exported.state, exported.holdout)
    assert (ours.accuracy, ours.macro_f1) == (torch.accuracy, torch.macro_f1)
    assert ours.loss == pytest.approx(torch.loss, rel=1e-5)


def test_the_judged_forms_are_those_of_a_bundle(exported: Exported) -> None:
    central = exported.task.source(CENTRAL)
    forms = quantise(exported.graphs.infer, central.x)
    expected = {
        "int8_qdq": evaluate_onnx(forms.canonical, exported.holdout).accuracy,
        "int8_x86": evaluate_onnx(forms.x86, exported.holdout).accuracy,
    }
    cohorts = {"holdout": exported.holdout, "rotated": Dataset(exported.holdout.x[:50], exported.holdout.y[:50])}
    figures = DeployedJudge(exported.graphs.evaluate, central, cohorts)(exported.first)
    assert {form: figures[f"{ACCURACY}_{form}"] for form in expected} == expected
    assert figures[ACCURACY] == min(expected.values())
    assert 0.0 <= figures[f"{ACCURACY}_rotated"] <= 1.0
    assert 0.8 < figures["deployed_agreement"] <= 1.0
    assert figures["deployed_latency_class"] in (0.0, 1.0, 2.0, 3.0)


def test_parameters_that_do_not_fit_are_named(exported: Exported) -> None:
    state = dict(exported.state)
    state["head.bias"] = np.zeros(3, np.float32)
    with pytest.raises(BundleError, match=r"head\.bias: expected shape \(10,\), got \(3,\)"):
        bind_parameters(exported.graphs.evaluate, state)
    del state["head.bias"]
    with pytest.raises(BundleError, match=r"parameters without a value: \['head\.bias'\]"):
        bind_parameters(exported.graphs.evaluate, state)


def test_what_is_judged_beside_the_holdout(exported: Exported) -> None:
    cohorts = cohorts_of(exported.task)
    assert list(cohorts) == ["holdout", "drifted", "unseen"]
    assert len(cohorts["unseen"]) > 0
    assert np.array_equal(cohorts["drifted"].y, exported.holdout.y)
    assert not np.array_equal(cohorts["drifted"].x, exported.holdout.x)

    class Fewer:
        """The task where nobody has brought rows of unseen people."""

        def source(self, name: str) -> Dataset:
            if name == UNSEEN:
                raise DataError("no rows of unseen people", looked_for=["nowhere"], remedy="none")
            return exported.task.source(name)

        apply_drift = staticmethod(exported.task.apply_drift)

    assert list(cohorts_of(Fewer())) == ["holdout", "drifted"]  # type: ignore[arg-type]  # as much of a task as is asked


def test_a_judge_needs_a_holdout(exported: Exported) -> None:
    with pytest.raises(ValueError, match="must have a holdout"):
        DeployedJudge(b"", exported.holdout, {"site": exported.holdout})
