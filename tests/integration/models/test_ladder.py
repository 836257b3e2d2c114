"""A release with a smaller network, and INT8 calibrated by devices, on digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from skerry_contract.calibration import TensorRanges, decode_ranges, encode_ranges, merge_ranges, ranges_from_outputs
from skerry_contract.manifest import check_manifest
from skerry_contract.v1.release_pb2 import GoldenSet
from skerry_models.activation_ranges import check_same_ranges, measure_ranges, with_range_outputs
from skerry_models.bundle import BundleReport, build_bundle, check_bundle, describe_release
from skerry_models.calibrate import Calibration, calibrate, calibration_graph
from skerry_models.distill import distill
from skerry_models.errors import BundleError, ExportError
from skerry_models.evaluation import Evaluation, evaluate_onnx
from skerry_models.export import InferenceGraphs, export_inference
from skerry_models.fitting import fit
from skerry_models.ladder import Rung
from skerry_models.ladder_build import rung_reason
from skerry_models.network_forms import NetworkForms
from skerry_models.networks.initialise import initialise, separate_randomness
from skerry_models.parameters import State
from skerry_models.quantise import calibrated_tensors, quantise, quantise_with
from skerry_models.task import Dataset, TrainingDefaults, concatenate
from skerry_models.tasks.digits import DigitsTask


def tiny(seed: int) -> torch.nn.Module:
    with separate_randomness():
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 10)
        )
    initialise(network, seed)
    return network


RUNG = Rung("small", tiny, TrainingDefaults(40, 16, 0.01, 0.9), accuracy_loss=0.12)
#: Digits with a ladder; an object of the same class, so that it shares the kept exports of digits.
TASK = DigitsTask()
vars(TASK)["rungs"] = (RUNG,)


@pytest.fixture(scope="module")
def state() -> State:
    return fit(TASK, TASK.source("central"))


@pytest.fixture(scope="module")
def graphs(state: State) -> InferenceGraphs:
    return export_inference(TASK, state, TASK.source("holdout").x)


@pytest.fixture(scope="module")
def report(state: State, tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    central, holdout = TASK.source("central"), TASK.source("holdout")
    folder = tmp_path_factory.mktemp("ladder") / "bundle"
    return build_bundle(
        TASK, state, folder, reference=central, calibration=central, holdout=holdout, lineage={"origin": "central"}
    )


def test_bundle_holds_a_network_for_each_rung(report: BundleReport) -> None:
    manifest = describe_release(report.folder, release_id="r-1", sequence=1, task=TASK, now_ms=1)
    check_manifest(manifest)
    check_bundle(report.folder)
    forms = {variant.name: variant for variant in manifest.variants}
    assert {"fp32", "int8-qdq", "int8-x86", "small/fp32", "small/int8-qdq", "small/int8-x86"} <= set(forms)
    small = forms["small/int8-x86"]
    assert (small.path, small.golden, small.rung) == ("small.infer.int8-x86.onnx", "small.golden.pb", 1)
    assert (forms["int8-x86"].golden, forms["int8-x86"].rung) == ("", 0)
    assert list(small.device_classes) == list(forms["int8-x86"].device_classes) == ["x86_64"]
    holdout = TASK.source("holdout")
    for variant in manifest.variants:
        got = evaluate_onnx(report.folder / variant.path, holdout, optimise=False).accuracy
        assert got == pytest.approx(variant.accuracy, abs=1e-6)
    assert forms["small/fp32"].accuracy >= forms["fp32"].accuracy - 0.12
    assert report.metrics["accuracy_small_int8_x86"] == pytest.approx(small.accuracy)
    assert report.metrics["latency_small_int8_x86_p50_us"] > 0
    golden = GoldenSet.FromString((report.folder / "small.golden.pb").read_bytes())
    assert {outputs.variant for outputs in golden.outputs} == {name for name in forms if name.startswith("small/")}
    assert golden.inputs == GoldenSet.FromString((report.folder / "golden.pb").read_bytes()).inputs
    assert report.files["small.infer.onnx"] < report.files["infer.onnx"]


def test_forms_of_a_network_stay_within_twice_its_fp32_file(report: BundleReport) -> None:
    assert report.metrics["size_forms_bytes"] <= 2 * report.metrics["size_fp32_bytes"]
    assert "fp16" in report.left_out
    assert "small/fp16" in report.left_out


def test_a_broken_or_missing_file_of_a_rung_is_named(report: BundleReport, tmp_path: Path) -> None:
    for path in report.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = onnx.load(tmp_path / "small.infer.onnx")
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.raw_data = tensor.raw_data[::-1]
    (tmp_path / "small.infer.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="small/fp32"):
        check_bundle(tmp_path)
    (tmp_path / "small.golden.pb").unlink()
    with pytest.raises(BundleError, match=r"small\.golden\.pb: missing"):
        describe_release(tmp_path, release_id="r-1", sequence=1, task=TASK, now_ms=1)


def test_distillation_is_repeatable_and_follows_its_teacher(state: State) -> None:
    rung = dataclasses.replace(RUNG, training=TrainingDefaults(1, 32, 0.005, 0.9))
    rows = TASK.source("client/c00")
    first, second = (distill(TASK, state, rung, Dataset(rows.x, labels)) for labels in (rows.y, np.zeros_like(rows.y)))
    assert all(np.array_equal(first[name], second[name]) for name in first)  # labels are not looked at
    other = distill(TASK, {**state, "head.bias": np.arange(10, dtype=np.float32)}, rung, rows)
    assert not np.array_equal(first["3.weight"], other["3.weight"])
    with pytest.raises(ValueError, match="needs rows"):
        distill(TASK, state, rung, rows.take(np.array([], np.int64)))


def judged(**accuracies: float) -> NetworkForms:
    figures = {name: Evaluation(value, value, 0.1, (), (), 100) for name, value in accuracies.items()}
    return NetworkForms("", 0, {}, figures, GoldenSet(), {})


@pytest.mark.parametrize(
    ("rung", "reason"),
    [
        ({"fp32": 0.85, "int8-x86": 0.84}, ""),
        ({"fp32": 0.849}, "accuracy 0.8490, at least 0.8500"),
        ({"fp32": 0.9, "int8-x86": 0.889}, "accuracy 0.8890 of int8-x86, at least 0.8900"),
    ],
)
def test_gate_of_a_rung(rung: dict[str, float], reason: str) -> None:
    assert rung_reason(judged(fp32=0.9), judged(**rung), accuracy_loss=0.05) == reason


def device_ranges(graphs: InferenceGraphs, state: State, rows: Dataset) -> TensorRanges:
    """One device over the wire: it runs calibrate.onnx and sends bytes."""
    return decode_ranges(encode_ranges(measure_ranges(calibration_graph(graphs), rows.x, state)))


def test_devices_calibrate_as_well_as_the_cloud(graphs: InferenceGraphs, state: State) -> None:
    clients = [TASK.source(f"client/{name}") for name in TASK.client_names()]
    central = TASK.source("central").x
    merged = merge_ranges(device_ranges(graphs, state, rows) for rows in clients)
    result = calibrate(graphs, state, central, merged)
    assert result.lineage() == {"source": "devices", "rows": 1047, "devices": 12}
    by_devices, by_cloud = quantise_with(graphs.infer, result.ranges.ranges), quantise(graphs.infer, central)
    everything = concatenate([*clients, TASK.source("holdout"), TASK.source("unseen")])
    for ours, theirs in ((by_devices.canonical, by_cloud.canonical), (by_devices.x86, by_cloud.x86)):
        assert ours != theirs
        accuracies = [evaluate_onnx(model, everything, optimise=False).accuracy for model in (ours, theirs)]
        assert accuracies[0] >= accuracies[1] - 0.003, accuracies


def test_central_calibration_measures_what_the_served_graph_computes(graphs: InferenceGraphs, state: State) -> None:
    rows = TASK.source("holdout")
    own: Calibration = calibrate(graphs, state, rows.x)
    assert own.lineage() == {"source": "central", "rows": 250, "devices": 1}
    assert set(own.ranges.ranges) == set(calibrated_tensors(graphs.infer))
    by_devices = device_ranges(graphs, state, rows)
    check_same_ranges(by_devices.ranges, own.ranges.ranges)
    least, most = own.ranges.ranges["scores"]
    scores = [float(value) for value in (evaluate_extremes(graphs, rows))]
    assert (least, most) == pytest.approx(scores, abs=1e-4)
    wrong = {**by_devices.ranges, "scores": (least, most + 1)}
    with pytest.raises(ExportError, match="the range of scores"):
        check_same_ranges(wrong, own.ranges.ranges)


def evaluate_extremes(graphs: InferenceGraphs, rows: Dataset) -> tuple[float, float]:
    from skerry_models.evaluation import onnx_scores

    scores = onnx_scores(graphs.infer, rows.x)
    return float(scores.min()), float(scores.max())


def test_ranges_of_something_else_are_refused(graphs: InferenceGraphs, state: State) -> None:
    rows = TASK.source("client/c00")
    ranges = device_ranges(graphs, state, rows)
    moved = {**state, "head.bias": np.arange(10, dtype=np.float32)}
    for wrong in (
        device_ranges(graphs, moved, rows),
        dataclasses.replace(ranges, graph_sha256=b"x" * 32),
        dataclasses.replace(ranges, ranges={"scores": (0.0, 1.0)}),
    ):
        with pytest.raises(BundleError, match=r"calibrate\.onnx"):
            calibrate(graphs, state, rows.x, wrong)
    with pytest.raises(ExportError, match="no range of"):
        quantise_with(graphs.infer, {"scores": (0.0, 1.0)})
    with pytest.raises(ExportError, match="no values nowhere"):
        with_range_outputs(graphs.infer, ["nowhere"])
    with pytest.raises(ValueError, match="at least one row"):
        measure_ranges(calibration_graph(graphs), rows.x[:0], state)


def test_a_device_needs_numpy_and_a_runtime_only(graphs: InferenceGraphs, state: State) -> None:
    """What an agent does, without the functions of the model package."""
    import hashlib

    import onnxruntime

    graph, parameters, x = calibration_graph(graphs), b"p" * 32, TASK.source("client/c01").x
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    feed = {name: array for name, array in state.items() if name in wanted}
    merged = merge_ranges(
        ranges_from_outputs(
            dict(zip(names, session.run(names, {**feed, "input": x[start : start + 8]}), strict=True)),
            rows=len(x[start : start + 8]),
            graph_sha256=hashlib.sha256(graph).digest(),
            parameters_sha256=parameters,
        )
        for start in range(0, len(x), 8)
    )
    check_same_ranges(merged.ranges, device_ranges(graphs, state, TASK.source("client/c01")).ranges)
    assert merged.rows == len(x)
