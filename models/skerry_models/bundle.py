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
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from skerry_contract.calibration import TensorRanges
from skerry_contract.errors import ContractError
from skerry_contract.histogram import edges_digest
from skerry_contract.manifest import bundle_digest, check_manifest, describe_file
from skerry_contract.tensors import Array
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.forms_pb2 import BundleVariants
from skerry_contract.v1.release_pb2 import GoldenSet, ReleaseManifest, Variant
from skerry_models.activation_ranges import CALIBRATE
from skerry_models.calibrate import calibrate
from skerry_models.edges import DRIFT_EDGES, reference_edges
from skerry_models.errors import BundleError
from skerry_models.evaluation import Evaluation
from skerry_models.export import EVALUATE, FEATURES, INPUT, SCORES, export_inference
from skerry_models.forms import FORMS, REQUIRED, variant_name
from skerry_models.frozen_scales import choose_scales
from skerry_models.golden import GOLDEN, check_golden, golden_rows
from skerry_models.joint_graph import ARTIFACT as TRAIN_STEP
from skerry_models.kept_step import TrainStep, train_step_for
from skerry_models.ladder_build import build_ladder
from skerry_models.latency_class import deadline_us
from skerry_models.model_card import MODEL_CARD, write_model_card
from skerry_models.network_forms import make_forms, measure_forms
from skerry_models.parameters import encode_state
from skerry_models.quantise import QuantisedGraphs, quantise_with
from skerry_models.task import Dataset, Task

M = TypeVar("M", bound=Message)

TRAIN_STEP_SPEC = "train_step.pb"
GOLDEN_STEP = "golden_step.pb"
PARAMETERS = "parameters.pb"
LINEAGE = "lineage.json"
#: The bundle's forms, as the manifest lists them (BundleVariants).
VARIANTS = "variants.pb"
#: Files that every bundle has. Optional forms and smaller networks (:mod:`skerry_models.forms`) add some.
FILES = (
    *(FORMS[name].file for name in REQUIRED),
    EVALUATE,
    CALIBRATE,
    TRAIN_STEP,
    TRAIN_STEP_SPEC,
    PARAMETERS,
    GOLDEN,
    GOLDEN_STEP,
    DRIFT_EDGES,
    VARIANTS,
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
        metrics: accuracy, macro_f1, loss (fp32 on holdout); accuracy_<variant> of every other form;
            int8_minus_fp32 (worst INT8 form of the release's own network); parity; latency_<variant>_p50_us and
            _p99_us; latency_int8_p99_us (fastest INT8 form); size_fp32_bytes, size_int8_bytes (canonical),
            size_forms_bytes (all forms of the release's own network); int8_scales_kept (1 or 0), int8_clipped_share.
            A variant's name has "_" for "-" and "/".
        evaluations: Variant name to its figures on holdout.
        left_out: Optional form or rung to why it is not in the bundle.
    """

    folder: Path
    digest: str
    files: dict[str, int]
    variants: dict[str, str]
    metrics: dict[str, float]
    evaluations: dict[str, Evaluation] = field(repr=False)
    left_out: dict[str, str]


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
    ranges: TensorRanges | None = None,
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
        ranges: Activation ranges that devices measured with these parameters, instead of those of ``calibration``.

    Raises:
        ParameterError: The state does not fit the task.
        ExportError: The network cannot become an artifact.
        BundleError: ``folder`` is not empty, the parent's edges are of another task, or ``ranges`` are of another
            network or other parameters.
        ValueError: A data set is empty, or the lineage is no JSON.
        TypeError: The lineage holds what JSON does not know.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BundleError(str(folder), "the folder is not empty")
    json.dumps(lineage)  # what is no JSON is refused before the work begins
    graphs = export_inference(task, state, reference.x)
    calibrated = calibrate(graphs, state, calibration.x, ranges)
    scales = choose_scales(
        quantise_with(graphs.infer, calibrated.ranges.ranges), graphs.infer, parent_quantised, holdout
    )
    rows = golden_rows(reference)
    own = make_forms(graphs.infer, scales.graphs, rows, holdout)
    ladder = build_ladder(task, state, own, rows=rows, training=calibration, holdout=holdout)
    networks = [own, *ladder.networks]
    left_out = {**own.refused, **ladder.left_out}
    lineage = {
        **lineage,
        "int8_scales": {"kept": scales.kept, "detail": scales.detail},
        "calibration": calibrated.lineage(),
        **({"left_out": left_out} if left_out else {}),
    }
    lineage_text = json.dumps(lineage, sort_keys=True, indent=2) + "\n"
    step, golden_training = train_step_for(task, state, reference, parent_step)
    variants = [variant for network in networks for variant in network.variants()]
    contents: dict[str, bytes] = {
        **{name: data for network in networks for name, data in network.files().items()},
        EVALUATE: graphs.evaluate,
        CALIBRATE: calibrated.graph,
        TRAIN_STEP: step.model,
        TRAIN_STEP_SPEC: step.spec.SerializeToString(deterministic=True),
        PARAMETERS: encode_state(state),
        GOLDEN_STEP: golden_training.SerializeToString(deterministic=True),
        DRIFT_EDGES: reference_edges(task, graphs.infer, reference.x, parent_edges),
        VARIANTS: BundleVariants(variants=variants).SerializeToString(deterministic=True),
        LINEAGE: lineage_text.encode(),
    }
    evaluations = {
        variant_name(network.rung, name): evaluation
        for network in networks
        for name, evaluation in network.evaluations.items()
    }
    card = write_model_card(
        task,
        evaluations,
        parameters=sum(array.size for array in state.values()),
        sizes={name: len(contents[name]) for name in [*(variant.path for variant in variants), TRAIN_STEP]},
        lineage=lineage,
    )
    contents[MODEL_CARD] = card.encode()
    _write_folder(folder, contents)
    metrics = measure_forms(networks, holdout) | {
        "parity": graphs.parity,
        "int8_scales_kept": float(scales.kept),
        "int8_clipped_share": scales.clipped_share,
    }
    return BundleReport(
        folder=folder,
        digest=bundle_digest(describe_file(folder / name, name) for name in contents).hex(),
        files={name: len(data) for name, data in contents.items()},
        variants={variant.name: variant.path for variant in variants},
        metrics=metrics,
        evaluations=evaluations,
        left_out=left_out,
    )


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, data in contents.items():
            with (partial / name).open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
        partial.chmod(0o755)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_bundle(folder: Path) -> GoldenSet:
    """Check that a folder is a complete bundle whose variants reproduce their golden outputs; returns golden.pb.

    Raises:
        BundleError: A file is missing, foreign or broken, or a variant is off.
    """
    variants = read_variants(folder)
    sets = {name: _parse(GoldenSet, folder, name) for name in {GOLDEN, *(v.golden or GOLDEN for v in variants)}}
    for variant in variants:
        model = (folder / variant.path).read_bytes()
        check_golden(sets[variant.golden or GOLDEN], variant.name, model, optimise=False)
    return sets[GOLDEN]


def read_variants(folder: Path) -> list[Variant]:
    """Forms of a complete bundle, as the manifest lists them.

    Raises:
        BundleError: A file is missing, foreign or broken.
    """
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if VARIANTS not in names:
        raise BundleError(VARIANTS, f"missing in {folder}")
    variants = list(_parse(BundleVariants, folder, VARIANTS).variants)
    needed = [*FILES, *(name for variant in variants for name in (variant.path, variant.golden) if name)]
    for name in needed:
        if name not in names:
            raise BundleError(name, f"missing in {folder}")
    foreign = sorted(names - set(needed) - {"manifest.pb"})
    if foreign:
        raise BundleError(foreign[0], "no bundle has this file")
    for name in {GOLDEN, *(variant.golden for variant in variants if variant.golden)}:
        _parse(GoldenSet, folder, name)
    return variants


def _parse(message_type: type[M], folder: Path, name: str) -> M:
    message = message_type()
    try:
        message.ParseFromString((folder / name).read_bytes())
    except DecodeError as error:
        raise BundleError(name, f"does not parse: {error}") from error
    return message


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
    variants = read_variants(folder)
    paths = {*FILES, *(name for variant in variants for name in (variant.path, variant.golden) if name)}
    files = [describe_file(folder / name, name) for name in sorted(paths)]
    by_path = {entry.path: entry for entry in files}
    manifest = ReleaseManifest(
        release_id=release_id,
        sequence=sequence,
        task=task.name,
        bundle_sha256=bundle_digest(files),
        files=files,
        variants=variants,
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
        deadline_us=deadline_us(task),
    )
    try:
        return check_manifest(manifest)
    except ContractError as error:
        raise ValueError(str(error)) from error
