"""A bundle: every file that a device needs of one release, in one folder.

Invariants: a folder is complete or it does not exist (it is filled beside its place and renamed); its files follow
from task, parameters and data alone, so that the same inputs give the same digest; what depends on the machine
(latency) is in the report and in no file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skerry_contract.errors import ContractError
from skerry_contract.histogram import edges_digest
from skerry_contract.manifest import bundle_digest, check_manifest, describe_file
from skerry_contract.tensors import Array
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import GoldenSet, ReleaseManifest, Variant
from skerry_models.edges import DRIFT_EDGES, reference_edges
from skerry_models.errors import BundleError
from skerry_models.evaluation import Evaluation, evaluate_onnx
from skerry_models.export import EVALUATE, FEATURES, INFER, INPUT, SCORES, export_inference
from skerry_models.frozen_scales import choose_scales
from skerry_models.golden import GOLDEN, build_golden, check_golden, golden_rows, golden_tolerance
from skerry_models.joint_graph import ARTIFACT as TRAIN_STEP
from skerry_models.kept_step import TrainStep, train_step_for
from skerry_models.latency import measure_latency
from skerry_models.model_card import MODEL_CARD, write_model_card
from skerry_models.parameters import encode_state
from skerry_models.quantise import INT8_QDQ, INT8_X86, QuantisedGraphs, quantise
from skerry_models.task import Dataset, Task

TRAIN_STEP_SPEC = "train_step.pb"
GOLDEN_STEP = "golden_step.pb"
PARAMETERS = "parameters.pb"
LINEAGE = "lineage.json"
#: Variant name to file and the device classes that may run it (none: every class).
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fp32": (INFER, ()),
    "int8-qdq": (INT8_QDQ, ()),
    "int8-x86": (INT8_X86, ("x86_64",)),
}
#: Every file of a bundle.
FILES = (
    INFER,
    INT8_QDQ,
    INT8_X86,
    EVALUATE,
    TRAIN_STEP,
    TRAIN_STEP_SPEC,
    PARAMETERS,
    GOLDEN,
    GOLDEN_STEP,
    DRIFT_EDGES,
    MODEL_CARD,
    LINEAGE,
)
#: How long a release may be installed after it was described (milliseconds).
INSTALLABLE_MS = 365 * 24 * 3600 * 1000


@dataclass(frozen=True)
class BundleReport:
    """What was built and how good it is.

    Attributes:
        folder: Where the files lie.
        digest: SHA-256 of the bundle, hexadecimal.
        files: File name to bytes.
        variants: Variant name to file name.
        metrics: accuracy, macro_f1, loss (fp32 on holdout); accuracy_int8_qdq, accuracy_int8_x86; int8_minus_fp32
            (worst INT8 variant); parity; latency_<variant>_p50_us and _p99_us; latency_int8_p99_us (fastest INT8
            variant); size_fp32_bytes, size_int8_bytes (canonical); int8_scales_kept (1 or 0), int8_clipped_share.
        evaluations: Variant name to its figures on holdout.
    """

    folder: Path
    digest: str
    files: dict[str, int]
    variants: dict[str, str]
    metrics: dict[str, float]
    evaluations: dict[str, Evaluation] = field(repr=False)


def build_bundle(
    task: Task,
    state: Mapping[str, Array],
    folder: Path,
    *,
    reference: Dataset,
    calibration: Dataset,
    holdout: Dataset,
    lineage: Mapping[str, object],
    parent_edges: bytes | None = None,
    parent_step: TrainStep | None = None,
    parent_quantised: QuantisedGraphs | None = None,
) -> BundleReport:
    """Build a bundle.

    Args:
        task: What is learned.
        state: Parameters in network order.
        folder: Becomes the bundle; must not exist, or be empty.
        reference: Rows that stand for normal use: edges, golden rows.
        calibration: Rows that INT8 ranges come from.
        holdout: Rows that nobody trains on: the figures.
        lineage: JSON-able: data, code, parents, campaign; written as lineage.json.
        parent_edges: drift_edges.pb of the parent release, whose edges are kept; None for a first release.
        parent_step: The parent release's training step. It does not depend on the parameters, so it is kept while
            torch in float64 agrees with it about this network; otherwise, and without one, it is exported.
        parent_quantised: INT8 forms of the parent release. Their scales are kept while that costs no accuracy, so that
            devices get a small delta; ``int8_scales`` of lineage.json says whether they were, and why not.

    Raises:
        ParameterError: The state does not fit the task.
        ExportError: The network cannot become an artifact.
        BundleError: ``folder`` is not empty, or the parent's edges are of another task.
        ValueError: A data set is empty, or the lineage is no JSON.
        TypeError: The lineage holds what JSON does not know.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BundleError(str(folder), "the folder is not empty")
    json.dumps(lineage)  # what is no JSON is refused before the work begins
    graphs = export_inference(task, state, reference.x)
    scales = choose_scales(quantise(graphs.infer, calibration.x), graphs.infer, parent_quantised, holdout)
    quantised = scales.graphs
    lineage = {**lineage, "int8_scales": {"kept": scales.kept, "detail": scales.detail}}
    lineage_text = json.dumps(lineage, sort_keys=True, indent=2) + "\n"
    models = {"fp32": graphs.infer, "int8-qdq": quantised.canonical, "int8-x86": quantised.x86}
    step, golden_training = train_step_for(task, state, reference, parent_step)
    golden = build_golden(models, golden_rows(reference))
    contents: dict[str, bytes] = {
        INFER: graphs.infer,
        INT8_QDQ: quantised.canonical,
        INT8_X86: quantised.x86,
        EVALUATE: graphs.evaluate,
        TRAIN_STEP: step.model,
        TRAIN_STEP_SPEC: step.spec.SerializeToString(deterministic=True),
        PARAMETERS: encode_state(state),
        GOLDEN: golden.SerializeToString(deterministic=True),
        GOLDEN_STEP: golden_training.SerializeToString(deterministic=True),
        DRIFT_EDGES: reference_edges(task, graphs.infer, reference.x, parent_edges),
        LINEAGE: lineage_text.encode(),
    }
    evaluations = {name: evaluate_onnx(model, holdout) for name, model in models.items()}
    card = write_model_card(
        task,
        evaluations,
        parameters=sum(array.size for array in state.values()),
        sizes={name: len(contents[name]) for name in (INFER, INT8_QDQ, INT8_X86, TRAIN_STEP)},
        lineage=lineage,
    )
    contents[MODEL_CARD] = card.encode()
    _write_folder(folder, contents)
    metrics = _metrics(evaluations, models, holdout) | {
        "parity": graphs.parity,
        "int8_scales_kept": float(scales.kept),
        "int8_clipped_share": scales.clipped_share,
    }
    return BundleReport(
        folder=folder,
        digest=bundle_digest(describe_file(folder / name, name) for name in FILES).hex(),
        files={name: len(contents[name]) for name in FILES},
        variants={name: file for name, (file, _) in VARIANTS.items()},
        metrics=metrics,
        evaluations=evaluations,
    )


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name in FILES:
            with (partial / name).open("wb") as out:
                out.write(contents[name])
                out.flush()
                os.fsync(out.fileno())
        partial.chmod(0o755)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _metrics(evaluations: Mapping[str, Evaluation], models: Mapping[str, bytes], holdout: Dataset) -> dict[str, float]:
    fp32 = evaluations["fp32"]
    latencies = {name: measure_latency(model, holdout.x[:1]) for name, model in models.items()}
    int8 = [name for name in models if name.startswith("int8")]
    metrics = {
        "accuracy": fp32.accuracy,
        "macro_f1": fp32.macro_f1,
        "loss": fp32.loss,
        "int8_minus_fp32": min(evaluations[name].accuracy for name in int8) - fp32.accuracy,
        "latency_int8_p99_us": min(latencies[name].p99_us for name in int8),
        "size_fp32_bytes": float(len(models["fp32"])),
        "size_int8_bytes": float(len(models["int8-qdq"])),
    }
    for name in models:
        key = name.replace("-", "_")
        metrics[f"latency_{key}_p50_us"] = latencies[name].p50_us
        metrics[f"latency_{key}_p99_us"] = latencies[name].p99_us
        if name in int8:
            metrics[f"accuracy_{key}"] = evaluations[name].accuracy
    return metrics


def check_bundle(folder: Path) -> GoldenSet:
    """Check that a folder is a complete bundle whose variants reproduce their golden outputs.

    Raises:
        BundleError: A file is missing, foreign or broken, or a variant is off.
    """
    golden = _read_golden(folder)
    for name, (file, _) in VARIANTS.items():
        check_golden(golden, name, (folder / file).read_bytes())
    return golden


def _read_golden(folder: Path) -> GoldenSet:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in FILES:
        if name not in names:
            raise BundleError(name, f"missing in {folder}")
    foreign = sorted(names - set(FILES) - {"manifest.pb"})
    if foreign:
        raise BundleError(foreign[0], "no bundle has this file")
    golden = GoldenSet()
    try:
        golden.ParseFromString((folder / GOLDEN).read_bytes())
    except Exception as error:
        # protobuf's DecodeError has no stable import path across its implementations.
        raise BundleError(GOLDEN, f"does not parse: {error}") from error
    return golden


def describe_release(
    folder: Path, *, release_id: str, sequence: int, task: Task, parent: str = "", now_ms: int
) -> ReleaseManifest:
    """Describe a bundle for signing.

    Args:
        folder: A bundle; a ``manifest.pb`` in it is not part of it.
        release_id: Name of the release.
        sequence: Counts up per task.
        task: What is learned.
        parent: Release that it follows; empty for the first.
        now_ms: Moment of creation, Unix milliseconds.

    Raises:
        BundleError: A file is missing, foreign or broken.
        ValueError: A name or number that no manifest can carry.
    """
    golden = _read_golden(folder)
    files = [describe_file(folder / name, name) for name in sorted(FILES)]
    by_path = {entry.path: entry for entry in files}
    manifest = ReleaseManifest(
        release_id=release_id,
        sequence=sequence,
        task=task.name,
        bundle_sha256=bundle_digest(files),
        files=files,
        variants=[
            Variant(name=name, path=file, device_classes=classes, golden_tolerance=golden_tolerance(golden, name))
            for name, (file, classes) in VARIANTS.items()
        ],
        inputs=[
            TensorSpec(
                name=INPUT,
                dtype="float32",
                shape=(-1, *task.input.shape),
                minimum=task.input.minimum,
                maximum=task.input.maximum,
            )
        ],
        outputs=[
            TensorSpec(name=SCORES, dtype="float32", shape=(-1, len(task.classes)), labels=task.classes),
            TensorSpec(name=FEATURES, dtype="float32", shape=(-1, len(task.feature_names)), labels=task.feature_names),
        ],
        edges_sha256=edges_digest((folder / DRIFT_EDGES).read_bytes()),
        train_step_sha256=by_path[TRAIN_STEP].sha256,
        created_unix_ms=now_ms,
        expires_unix_ms=now_ms + INSTALLABLE_MS,
        parent_release_id=parent,
        scores_output=SCORES,
        features_output=FEATURES,
    )
    try:
        return check_manifest(manifest)
    except ContractError as error:
        raise ValueError(str(error)) from error
