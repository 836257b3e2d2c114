"""From a slot with a verified manifest to a release that can answer.

Everything that is read from the slot is hashed against the signed manifest and used from memory, so what was verified
is what runs, and a rotten flash block is an error here and not a wrong answer later.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from skerry_agent.engine.backend import Backend, ModelSource, Probe, Runner
from skerry_agent.engine.choice import Choice, read_choice, write_choice
from skerry_agent.engine.chooser import Candidate, Measurement, choose, load_candidate, present_backends
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.golden import Golden, parse_golden
from skerry_agent.engine.model import Model, ModelSpec
from skerry_agent.errors import ArtifactError
from skerry_agent.update.slots import SlotContent
from skerry_contract.errors import ContractError
from skerry_contract.histogram import parse_edges
from skerry_contract.v1.telemetry_pb2 import HistogramEdges

_log = logging.getLogger(__name__)

GOLDEN = "golden.pb"
EDGES = "drift_edges.pb"


@dataclass(frozen=True)
class LoadedRelease:
    """A release that passed its golden check here.

    Attributes:
        slot: Slot that it came from.
        model: The model.
        edges: Edges of the drift histograms.
        edges_sha256: Digest of drift_edges.pb.
        choice: The variant and its measured latency.
    """

    slot: str
    model: Model
    edges: HistogramEdges
    edges_sha256: bytes
    choice: Choice


def read_verified(content: SlotContent, name: str) -> bytes:
    """Read a file of the bundle.

    Raises:
        ArtifactError: Not in the manifest, missing, or not the bytes that were signed.
    """
    release_id = content.manifest.release_id
    path = content.path(name)
    entry = next(entry for entry in content.manifest.files if entry.path == name)
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise ArtifactError(release_id, f"{name} has {size} bytes instead of {entry.size}")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(release_id, f"{name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).digest() != entry.sha256:
        raise ArtifactError(release_id, f"{name} is not the file that was signed")
    return data


def load_release(content: SlotContent, *, backends: Mapping[str, Backend], device_class: str) -> LoadedRelease:
    """Load the chosen variant of a slot; measure and choose first if no choice is kept.

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    spec = ModelSpec.from_manifest(content.manifest)
    edges, edges_sha256 = _read_edges(content, spec)
    golden = _read_golden(content, spec)
    probes = present_backends(backends)
    choice = read_choice(content.folder)
    runner = None if choice is None else _load_choice(content, spec, choice, backends, probes, device_class, golden)
    if choice is None or runner is None:
        choice, _, runner = _measure(content, spec, backends, probes, device_class, golden)
        keep_choice(content, choice)
    model = Model(spec, runner, variant=choice.variant, backend=choice.backend)
    return LoadedRelease(content.slot, model, edges, edges_sha256, choice)


def measure_release(
    content: SlotContent, *, backends: Mapping[str, Backend], device_class: str
) -> tuple[Choice, list[Measurement]]:
    """Try every variant that may run here; returns the choice and all measurements.

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    spec = ModelSpec.from_manifest(content.manifest)
    _read_edges(content, spec)
    golden = _read_golden(content, spec)
    choice, measurements, runner = _measure(content, spec, backends, present_backends(backends), device_class, golden)
    runner.close()
    return choice, measurements


def keep_choice(content: SlotContent, choice: Choice) -> None:
    """Write choice.json; a full disk only costs the next start its head start."""
    try:
        write_choice(content.folder, choice)
    except OSError as error:
        _log.warning("release %s: the choice cannot be kept: %s", content.manifest.release_id, error)


def _measure(
    content: SlotContent,
    spec: ModelSpec,
    backends: Mapping[str, Backend],
    probes: Mapping[str, Probe],
    device_class: str,
    golden: Golden,
) -> tuple[Choice, list[Measurement], Runner]:
    candidates = [
        _candidate(content, spec, variant.name, name)
        for variant in content.manifest.variants
        if not variant.device_classes or device_class in variant.device_classes
        for name in probes
        if backends[name].accepts(variant.name)
    ]
    if not candidates:
        found = ", ".join(probes) or "none"
        raise ArtifactError(
            spec.release_id, f"no variant for device class {device_class} and the backends that are here ({found})"
        )
    chosen, measurements, runner = choose(
        spec.release_id, candidates, backends=backends, golden=golden, cache=content.folder / ".engines"
    )
    choice = Choice(
        bundle_sha256=content.manifest.bundle_sha256.hex(),
        variant=chosen.variant,
        backend=chosen.backend,
        backend_version=probes[chosen.backend].version,
        latency_us=chosen.median_us,
        p99_us=chosen.p99_us,
    )
    return choice, measurements, runner


def _load_choice(
    content: SlotContent,
    spec: ModelSpec,
    choice: Choice,
    backends: Mapping[str, Backend],
    probes: Mapping[str, Probe],
    device_class: str,
    golden: Golden,
) -> Runner | None:
    """The runner of a kept choice, or None if the choice does not hold any more."""
    variant = next((v for v in content.manifest.variants if v.name == choice.variant), None)
    probe = probes.get(choice.backend)
    holds = (
        variant is not None
        and (not variant.device_classes or device_class in variant.device_classes)
        and probe is not None
        and probe.version == choice.backend_version
        and choice.bundle_sha256 == content.manifest.bundle_sha256.hex()
        and backends[choice.backend].accepts(choice.variant)
    )
    if not holds:
        return None
    candidate = _candidate(content, spec, choice.variant, choice.backend)
    cache = content.folder / ".engines"
    try:
        return load_candidate(candidate, backends[choice.backend], golden=golden, cache=cache)[0]
    except BackendError as error:
        _log.warning("release %s: the kept choice is refused: %s", spec.release_id, error)
        return None


def _candidate(content: SlotContent, spec: ModelSpec, variant_name: str, backend: str) -> Candidate:
    variant = next(v for v in content.manifest.variants if v.name == variant_name)
    if not (math.isfinite(variant.golden_tolerance) and variant.golden_tolerance >= 0):
        raise ArtifactError(spec.release_id, f"variant {variant.name} has tolerance {variant.golden_tolerance}")
    onnx = read_verified(content, variant.path)
    source = ModelSource(
        onnx=onnx,
        sha256=hashlib.sha256(onnx).digest(),
        input=spec.input,
        outputs=(spec.scores, spec.features),
        maximum_batch=spec.maximum_batch,
    )
    return Candidate(variant.name, backend, variant.golden_tolerance, source)


def _read_golden(content: SlotContent, spec: ModelSpec) -> Golden:
    try:
        golden = parse_golden(read_verified(content, GOLDEN), input_name=spec.input.name)
    except ContractError as error:
        raise ArtifactError(spec.release_id, f"{GOLDEN}: {error}") from error
    if golden.x.shape[1:] != spec.input.shape:
        raise ArtifactError(
            spec.release_id, f"{GOLDEN}: inputs are {golden.x.shape}, not [N, {list(spec.input.shape)}]"
        )
    return golden


def _read_edges(content: SlotContent, spec: ModelSpec) -> tuple[HistogramEdges, bytes]:
    data = read_verified(content, EDGES)
    digest = hashlib.sha256(data).digest()
    if digest != content.manifest.edges_sha256:
        raise ArtifactError(spec.release_id, f"{EDGES} is not the one that the manifest names")
    try:
        edges = parse_edges(data)
    except ContractError as error:
        raise ArtifactError(spec.release_id, f"{EDGES}: {error}") from error
    if len(edges.features) != spec.features.shape[0] or tuple(edges.classes) != spec.classes:
        raise ArtifactError(
            spec.release_id,
            f"{EDGES} has {len(edges.features)} features and {len(edges.classes)} classes, "
            f"the model {spec.features.shape[0]} and {len(spec.classes)}",
        )
    return edges, digest
