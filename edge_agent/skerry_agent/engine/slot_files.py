"""Reads the files of a slot, each held to its digest in the signed manifest and used from memory.

What was verified is what runs, and a rotten flash block is an error here and not a wrong answer later.
"""

from __future__ import annotations

import hashlib

from skerry_agent.engine.golden import Golden, parse_golden
from skerry_agent.engine.model import ModelSpec
from skerry_agent.errors import ArtifactError
from skerry_agent.update.slots import SlotContent
from skerry_contract.errors import ContractError
from skerry_contract.histogram import parse_edges
from skerry_contract.v1.telemetry_pb2 import HistogramEdges

GOLDEN = "golden.pb"
EDGES = "drift_edges.pb"


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


def read_golden(content: SlotContent, spec: ModelSpec, name: str = GOLDEN) -> Golden:
    """Read golden inputs and outputs; each rung of the ladder has a file of its own.

    Raises:
        ArtifactError: Not a golden set for the input of the manifest.
    """
    try:
        golden = parse_golden(read_verified(content, name), input_name=spec.input.name)
    except ContractError as error:
        raise ArtifactError(spec.release_id, f"{name}: {error}") from error
    if golden.x.shape[1:] != spec.input.shape:
        raise ArtifactError(spec.release_id, f"{name}: inputs are {golden.x.shape}, not [N, {list(spec.input.shape)}]")
    return golden


def read_edges(content: SlotContent, spec: ModelSpec) -> tuple[HistogramEdges, bytes]:
    """Read the edges of the drift histograms and their digest.

    Raises:
        ArtifactError: Not the edges that the manifest names, or not for this model.
    """
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
