"""Deltas of a candidate's files against the releases that devices are likely to have.

Bases are the parent release and the champion. Each file of the bundle that differs from the base's file of the same
name gets a delta (:mod:`skerry_contract.delta`), applied once before it is believed, stored as an artifact and written
into ``Candidate.deltas``::

    {"bases": ["har-r3-0a1b2c3d"],
     "files": {"infer.int8-qdq.onnx": [{"base_sha256": "…", "sha256": "…", "size": 4711, "file_size": 46012}]}}

Every measured size is written there; only deltas that are worth their trouble, by :func:`is_worth_it`, go into the
signed manifest. Files that are compiled for one machine are never subtracted: they share nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skerry_contract import delta as delta_format
from skerry_contract.delta_writer import write_delta
from skerry_contract.errors import WireError
from skerry_contract.limits import DELTAS, MESSAGE_BYTES
from skerry_contract.manifest import describe_delta
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_models.delta_plan import plan_matches
from skerry_server.errors import SkerryError
from skerry_server.releases.artifacts import ArtifactStore, BundleFile

log = logging.getLogger(__name__)
#: Most releases that deltas are made against.
BASES = 2
#: A delta is published when it is smaller than this share of its file.
WORTH = 0.8
#: Smaller files are sent as they are (bytes).
SMALLEST_FILE = 1_024
#: Larger files are sent as they are: a delta is made in memory (bytes).
LARGEST_FILE = 512 << 20
#: Files made for one machine.
_COMPILED = (".engine", ".plan", ".ort", ".trt")
#: What a manifest leaves free in the message that carries it, for its signature and the instruction around it (bytes).
_ENVELOPE_BYTES = 8 << 10


@dataclass(frozen=True)
class Base:
    """A release that deltas are made against: its name and its bundle (SHA-256, hexadecimal)."""

    release_id: str
    bundle_sha256: str


def make_deltas(artifacts: ArtifactStore, bundle_sha256: str, bases: Sequence[Base]) -> dict[str, Any]:
    """Make and store the deltas of a bundle; returns what ``Candidate.deltas`` holds.

    Making them again gives the same artifacts. A base that is damaged or gone is left out: devices then fetch whole
    files, which is always right.

    Args:
        artifacts: Holds the bundles, takes the deltas.
        bundle_sha256: The candidate's bundle.
        bases: At most :data:`BASES`; the same bundle twice counts once.

    Raises:
        SkerryError: The candidate's own bundle cannot be read, or the store fails.
    """
    files = artifacts.bundle_files(bundle_sha256)
    distinct = {base.bundle_sha256: base for base in reversed(bases) if base.bundle_sha256 != bundle_sha256}
    chosen = list(reversed(distinct.values()))[:BASES]
    made: dict[str, dict[str, dict[str, Any]]] = {}
    used = []
    for base in chosen:
        try:
            known = {file.path: file for file in artifacts.bundle_files(base.bundle_sha256)}
            for file in files:
                old = known.get(file.path)
                if old is None or not _can_gain(file, old) or old.sha256 in made.get(file.path, {}):
                    continue
                made.setdefault(file.path, {})[old.sha256] = _make(artifacts, file, old)
            used.append(base.release_id)
        except SkerryError as error:
            log.warning("no deltas against %s: %s", base.release_id, error)
    return {
        "bases": used,
        "files": {
            path: sorted(entries.values(), key=lambda entry: (entry["size"], entry["base_sha256"]))
            for path, entries in sorted(made.items())
        },
    }


def is_worth_it(size: int, file_size: int) -> bool:
    """Whether a delta of ``size`` bytes is published for a file of ``file_size`` bytes."""
    return size < WORTH * file_size


def add_deltas(manifest: ReleaseManifest, deltas: Mapping[str, Any], artifacts: ArtifactStore) -> None:
    """Put the deltas that are worth it into a manifest, smallest first, in place.

    A delta whose artifact is gone is left out, and so are all of them if the manifest would grow beyond what one
    message carries: whole files are always there.

    Args:
        manifest: Of the candidate's bundle, not signed yet.
        deltas: ``Candidate.deltas``.
        artifacts: Holds the deltas.
    """
    measured = deltas.get("files", {})
    for entry in manifest.files:
        for found in measured.get(entry.path, [])[:DELTAS]:
            if not is_worth_it(found["size"], entry.size):
                continue
            try:
                content = artifacts.get_bytes(found["sha256"])
            except SkerryError as error:
                log.warning("%s: a delta of %s is left out: %s", manifest.release_id, entry.path, error)
                continue
            entry.deltas.append(describe_delta(content, base_sha256=bytes.fromhex(found["base_sha256"])))
    if manifest.ByteSize() > MESSAGE_BYTES - _ENVELOPE_BYTES:
        log.warning("%s: no deltas, the manifest would be too large", manifest.release_id)
        for entry in manifest.files:
            del entry.deltas[:]


def _can_gain(file: BundleFile, old: BundleFile) -> bool:
    compiled = file.path.endswith(_COMPILED)
    within = SMALLEST_FILE <= file.size <= LARGEST_FILE and old.size <= LARGEST_FILE
    return file.sha256 != old.sha256 and within and not compiled


def _make(artifacts: ArtifactStore, file: BundleFile, old: BundleFile) -> dict[str, Any]:
    base, target = artifacts.get_bytes(old.sha256), artifacts.get_bytes(file.sha256)
    try:
        matches = plan_matches(file.path, base, target)
    except ValueError as error:
        log.warning("%s: its tensors are not found, compared as plain bytes: %s", file.path, error)
        matches = []
    delta = write_delta(base, target, matches)
    try:
        right = delta_format.apply(delta, base, limit=LARGEST_FILE) == target
    except WireError as error:
        raise RuntimeError(f"the delta of {file.path} cannot be applied: {error}") from error
    if not right:
        raise RuntimeError(f"the delta of {file.path} makes another file")
    return {
        "base_sha256": old.sha256,
        "sha256": artifacts.put_bytes(delta),
        "size": len(delta),
        "file_size": file.size,
    }
