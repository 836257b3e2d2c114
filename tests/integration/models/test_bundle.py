from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from skerry_contract.manifest import bundle_digest, check_manifest, describe_folder, parse_manifest
from skerry_contract.tensors import Array, decode_bundle
from skerry_contract.v1.release_pb2 import GoldenStep, TrainStepSpec
from skerry_models.bundle import FILES, BundleReport, build_bundle, check_bundle, describe_release
from skerry_models.canonical_lint import lint_canonical
from skerry_models.errors import BundleError, ParameterError
from skerry_models.evaluation import evaluate_onnx, network_scores, onnx_scores
from skerry_models.fitting import fit
from skerry_models.gates import evaluate_gates
from skerry_models.golden import check_golden
from skerry_models.parameters import State, initial_parameters
from skerry_models.runtime import open_session
from skerry_models.tasks.digits import DigitsTask
from skerry_models.train_step import check_golden_step

TASK = DigitsTask()
LINEAGE = {"origin": "central", "seed": 0, "parents": []}


@dataclass(frozen=True)
class Built:
    """A bundle of the default central model."""

    state: State
    report: BundleReport


def build(state: State, folder: Path, parent_edges: bytes | None = None) -> BundleReport:
    holdout = TASK.source("holdout")
    return build_bundle(
        TASK,
        state,
        folder,
        reference=holdout,
        calibration=TASK.source("central"),
        holdout=holdout,
        lineage=LINEAGE,
        parent_edges=parent_edges,
    )


def close(got: Array, expected: Array, tolerance: float) -> None:
    np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    state = fit(TASK, TASK.source("central"))
    return Built(state, build(state, tmp_path_factory.mktemp("bundle") / "first"))


def test_bundle_is_complete_and_proves_itself(built: Built) -> None:
    report = built.report
    assert {path.name for path in report.folder.iterdir()} == set(FILES)
    assert report.files == {path.name: path.stat().st_size for path in report.folder.iterdir()}
    check_bundle(report.folder)
    scales = {"kept": False, "detail": "no earlier release"}
    lineage = json.loads((report.folder / "lineage.json").read_text())
    assert lineage.pop("left_out") == report.left_out
    assert lineage.pop("calibration") == {"source": "central", "rows": 250, "devices": 1}
    assert lineage == {**LINEAGE, "int8_scales": scales}
    assert report.metrics["int8_scales_kept"] == report.metrics["int8_clipped_share"] == 0
    card = (report.folder / "model_card.md").read_text()
    assert f"{report.metrics['accuracy']:.4f}" in card
    step = GoldenStep.FromString((report.folder / "golden_step.pb").read_bytes())
    check_golden_step((report.folder / "train_step.onnx").read_bytes(), step)
    assert TrainStepSpec.FromString((report.folder / "train_step.pb").read_bytes()).data_input == "x"
    assert [path.name for path in report.folder.parent.iterdir()] == ["first"]


def test_exports_agree_with_torch(built: Built) -> None:
    folder, x = built.report.folder, TASK.source("unseen").x
    expected = network_scores(TASK, built.state, x)
    close(onnx_scores(folder / "infer.onnx", x), expected, 1e-4)
    evaluate = open_session(folder / "evaluate.onnx")
    parameters = decode_bundle((folder / "parameters.pb").read_bytes())
    (scores,) = evaluate.run(None, {"input": x[:64], **parameters})
    close(scores, expected[:64], 1e-4)
    other = initial_parameters(TASK, 5)
    (scores,) = evaluate.run(["scores"], {"input": x[:1], **other})
    close(scores, network_scores(TASK, other, x[:1]), 1e-4)


def test_evaluation_graph_requires_every_parameter(built: Built) -> None:
    model = onnx.load(built.report.folder / "evaluate.onnx")
    assert [value.name for value in model.graph.input] == ["input", *built.state]
    assert not {tensor.name for tensor in model.graph.initializer} & set(built.state)


def test_every_variant_has_one_input_and_two_outputs(built: Built) -> None:
    x = TASK.source("unseen").x[:5]
    reference = open_session(built.report.folder / "infer.onnx").run(["features"], {"input": x})[0]
    for file in built.report.variants.values():
        model = onnx.load(built.report.folder / file)
        assert [value.name for value in model.graph.input] == ["input"]
        assert [value.name for value in model.graph.output] == ["scores", "features"]
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        features = open_session(built.report.folder / file).run(["features"], {"input": x})[0]
        close(features, reference, 1e-5)


def test_int8_keeps_the_accuracy_and_the_canonical_form(built: Built) -> None:
    metrics = built.report.metrics
    assert metrics["int8_minus_fp32"] >= -0.01
    for source in ("unseen", "client/c00"):
        data = TASK.source(source)
        fp32 = evaluate_onnx(built.report.folder / "infer.onnx", data).accuracy
        for file in ("infer.int8-qdq.onnx", "infer.int8-x86.onnx"):
            assert evaluate_onnx(built.report.folder / file, data).accuracy >= fp32 - 0.02
    canonical = onnx.load(built.report.folder / "infer.int8-qdq.onnx")
    assert lint_canonical(canonical) == []
    assert {n.op_type for n in canonical.graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"}
    x86 = onnx.load(built.report.folder / "infer.int8-x86.onnx")
    assert "uint8" in {finding.rule for finding in lint_canonical(x86)}
    assert built.report.files["infer.int8-qdq.onnx"] < built.report.files["infer.onnx"]
    assert all(result.passed for result in evaluate_gates(metrics, None))


def test_same_parameters_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    again = build(built.state, tmp_path / "again")
    for name in FILES:
        assert (again.folder / name).read_bytes() == (built.report.folder / name).read_bytes(), name
    assert again.digest == built.report.digest == bundle_digest(describe_folder(again.folder)).hex()


def test_a_later_release_keeps_the_edges_of_its_parent(built: Built, tmp_path: Path) -> None:
    edges = (built.report.folder / "drift_edges.pb").read_bytes()
    child = build(initial_parameters(TASK, 1), tmp_path / "child", parent_edges=edges)
    after = (child.folder / "drift_edges.pb").read_bytes()
    assert after != edges  # predictions are counted again
    assert child.digest != built.report.digest
    assert (child.folder / "train_step.onnx").read_bytes() == (built.report.folder / "train_step.onnx").read_bytes()
    assert not all(result.passed for result in evaluate_gates(child.metrics, built.report.metrics))


@pytest.mark.parametrize("file", ["infer.onnx", "infer.int8-qdq.onnx", "infer.int8-x86.onnx"])
def test_golden_outputs_find_a_corrupted_model(built: Built, file: str) -> None:
    variant = next(name for name, path in built.report.variants.items() if path == file)
    golden = check_bundle(built.report.folder)
    model = onnx.load(built.report.folder / file)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    data = bytearray(tensor.raw_data)
    data[: len(data) // 4] = data[: len(data) // 4][::-1]
    tensor.raw_data = bytes(data)
    with pytest.raises(BundleError) as caught:
        check_golden(golden, variant, model.SerializeToString())
    assert caught.value.file == "golden.pb"


def test_description_is_a_valid_manifest(built: Built) -> None:
    manifest = describe_release(
        built.report.folder, release_id="release-1", sequence=3, task=TASK, parent="release-0", now_ms=1_700_000_000_000
    )
    assert check_manifest(manifest) is manifest
    parsed = parse_manifest(manifest.SerializeToString())
    assert parsed.bundle_sha256.hex() == built.report.digest
    assert {variant.name: variant.path for variant in parsed.variants} == built.report.variants
    assert all(variant.golden_tolerance > 0 for variant in parsed.variants)
    (data,) = parsed.inputs
    assert (data.name, data.dtype, list(data.shape)) == ("input", "float32", [-1, 1, 8, 8])
    assert (data.minimum, data.maximum) == (0.0, 16.0)
    assert list(parsed.outputs[0].labels) == list(TASK.classes)
    assert list(parsed.outputs[1].shape) == [-1, len(TASK.feature_names)]
    assert parsed.expires_unix_ms > parsed.created_unix_ms
    with pytest.raises(ValueError, match="release_id"):
        describe_release(built.report.folder, release_id="No Such Name", sequence=1, task=TASK, now_ms=0)


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    for path in built.report.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_incomplete_foreign_and_broken_folders_are_named(copy: Path) -> None:
    (copy / "manifest.pb").write_bytes(b"")
    check_bundle(copy)
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        check_bundle(copy)
    (copy / "notes.txt").unlink()
    golden = (copy / "golden.pb").read_bytes()
    (copy / "golden.pb").write_bytes(golden[:-3])
    with pytest.raises(BundleError, match="does not parse"):
        describe_release(copy, release_id="r", sequence=1, task=TASK, now_ms=0)
    (copy / "golden.pb").write_bytes(golden)
    (copy / "evaluate.onnx").unlink()
    with pytest.raises(BundleError, match=r"evaluate\.onnx"):
        describe_release(copy, release_id="r", sequence=1, task=TASK, now_ms=0)


def test_failed_builds_leave_nothing(built: Built, tmp_path: Path) -> None:
    broken = {**built.state, "head.bias": np.full(10, np.nan, dtype=np.float32)}
    with pytest.raises(ParameterError):
        build(broken, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    with pytest.raises(BundleError, match="not empty"):
        build(built.state, full)
    assert [path.name for path in full.iterdir()] == ["file"]
