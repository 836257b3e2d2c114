"""Which files get deltas, against which releases, and what of it reaches the signed manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry_contract.delta import apply
from skerry_contract.manifest import check_file_entry, describe_file
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.releases.deltas import WORTH, Base, add_deltas, is_worth_it, make_deltas


def model(seed: int, rounds: int) -> bytes:
    """A model with 6,000 int8 weights, so many rounds of small steps away from its start."""
    weight = np.random.default_rng(seed).integers(-127, 128, (60, 100)).astype(np.int8)
    for number in range(rounds):
        weight = weight + np.random.default_rng([seed, number]).integers(-1, 2, weight.shape).astype(np.int8)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    data: bytes = helper.make_model(graph).SerializeToString(deterministic=True)
    return data


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "store").as_uri(), local=tmp_path / "local")


class Bundles:
    """Puts bundles into a store, and remembers their folders."""

    def __init__(self, artifacts: ArtifactStore, root: Path) -> None:
        self._artifacts = artifacts
        self._root = root
        self.folders: dict[str, Path] = {}

    def put(self, name: str, files: dict[str, bytes]) -> Base:
        folder = self._root / name
        folder.mkdir()
        for path, content in files.items():
            (folder / path).write_bytes(content)
        sha256 = self._artifacts.put_bundle(folder)
        self.folders[sha256] = folder
        return Base(name, sha256)

    def manifest(self, base: Base) -> ReleaseManifest:
        folder = self.folders[base.bundle_sha256]
        return ReleaseManifest(
            release_id=base.release_id,
            files=[describe_file(path, path.name) for path in sorted(folder.iterdir())],
        )


@pytest.fixture
def bundles(artifacts: ArtifactStore, tmp_path: Path) -> Bundles:
    (tmp_path / "bundles").mkdir()
    return Bundles(artifacts, tmp_path / "bundles")


CARD = b"card " * 400
NOISE = np.random.default_rng(0).integers(0, 256, 3_000, dtype=np.uint8).tobytes()


def files(rounds: int, **more: bytes) -> dict[str, bytes]:
    return {"infer.int8-qdq.onnx": model(1, rounds), "model_card.md": CARD, **more}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_file_that_changed_gets_a_delta_from_each_base(artifacts: ArtifactStore, bundles: Bundles) -> None:
    parent, champion = bundles.put("r-2", files(1)), bundles.put("r-1", files(0))
    candidate = bundles.put("candidate", files(2))
    deltas = make_deltas(artifacts, candidate.bundle_sha256, [parent, champion])
    assert deltas["bases"] == ["r-2", "r-1"]
    assert set(deltas["files"]) == {"infer.int8-qdq.onnx"}
    near, far = deltas["files"]["infer.int8-qdq.onnx"]
    assert (near["base_sha256"], far["base_sha256"]) == (sha256(model(1, 1)), sha256(model(1, 0)))
    assert near["size"] < far["size"] < near["file_size"] / 2
    for entry, base in ((near, model(1, 1)), (far, model(1, 0))):
        content = artifacts.get_bytes(entry["sha256"])
        assert len(content) == entry["size"]
        assert apply(content, base) == model(1, 2)
    assert make_deltas(artifacts, candidate.bundle_sha256, [parent, champion]) == deltas


def test_the_same_bundle_is_one_base_and_the_candidate_itself_none(artifacts: ArtifactStore, bundles: Bundles) -> None:
    parent = bundles.put("r-1", files(0))
    candidate = bundles.put("candidate", files(1))
    again = Base("r-9", parent.bundle_sha256)
    itself = Base("r-8", candidate.bundle_sha256)
    deltas = make_deltas(artifacts, candidate.bundle_sha256, [parent, again, itself])
    assert deltas["bases"] == ["r-1"]
    assert len(deltas["files"]["infer.int8-qdq.onnx"]) == 1
    assert make_deltas(artifacts, candidate.bundle_sha256, []) == {"bases": [], "files": {}}


def test_compiled_files_and_small_ones_are_never_subtracted(artifacts: ArtifactStore, bundles: Bundles) -> None:
    more = {"model.engine": NOISE, "model.plan": NOISE, "lineage.json": b"{}"}
    changed = {"model.engine": NOISE[::-1], "model.plan": NOISE + b"x", "lineage.json": b"{1}"}
    parent = bundles.put("r-1", {**files(0), **more})
    candidate = bundles.put("candidate", {**files(0), **changed})
    assert make_deltas(artifacts, candidate.bundle_sha256, [parent]) == {"bases": ["r-1"], "files": {}}


def test_a_base_that_is_gone_is_left_out(artifacts: ArtifactStore, bundles: Bundles) -> None:
    parent, candidate = bundles.put("r-1", files(0)), bundles.put("candidate", files(1))
    deltas = make_deltas(artifacts, candidate.bundle_sha256, [Base("r-0", "0" * 64), parent])
    assert deltas["bases"] == ["r-1"]


def test_a_model_that_does_not_parse_is_compared_as_bytes(artifacts: ArtifactStore, bundles: Bundles) -> None:
    parent = bundles.put("r-1", {"infer.onnx": b"\xff" * 10 + NOISE})
    candidate = bundles.put("candidate", {"infer.onnx": b"\xfe" * 10 + NOISE})
    deltas = make_deltas(artifacts, candidate.bundle_sha256, [parent])
    assert deltas["files"]["infer.onnx"][0]["size"] < 400


@pytest.mark.parametrize(("size", "worth"), [(799, True), (800, False), (5_000, False)])
def test_what_is_worth_it(size: int, worth: bool) -> None:
    assert WORTH == 0.8
    assert is_worth_it(size, 1_000) is worth


def measured(base: bytes, delta: bytes) -> dict[str, Any]:
    return {"base_sha256": sha256(base), "sha256": sha256(delta), "size": len(delta), "file_size": 0}


def test_the_manifest_gets_what_is_worth_it_smallest_first(artifacts: ArtifactStore, bundles: Bundles) -> None:
    parent, champion = bundles.put("r-2", files(1)), bundles.put("r-1", files(0))
    other = bundles.put("other", {**files(0), "infer.int8-qdq.onnx": model(7, 0)})
    candidate = bundles.put("candidate", files(2))
    manifest = bundles.manifest(candidate)
    add_deltas(manifest, make_deltas(artifacts, candidate.bundle_sha256, [champion, parent]), artifacts)
    model_entry, card = manifest.files
    assert [delta.base_sha256.hex() for delta in model_entry.deltas] == [sha256(model(1, 1)), sha256(model(1, 0))]
    assert not card.deltas
    check_file_entry(model_entry, field="file")
    # Weights of another network share nothing: measured, written down, not published.
    useless = make_deltas(artifacts, candidate.bundle_sha256, [other])
    assert useless["files"]["infer.int8-qdq.onnx"][0]["size"] > 0.8 * model_entry.size
    manifest = bundles.manifest(candidate)
    add_deltas(manifest, useless, artifacts)
    assert not manifest.files[0].deltas


def test_candidates_from_before_deltas_and_lost_artifacts_make_a_plain_manifest(
    artifacts: ArtifactStore, bundles: Bundles
) -> None:
    candidate = bundles.put("candidate", files(2))
    manifest = bundles.manifest(candidate)
    plain = manifest.SerializeToString(deterministic=True)
    add_deltas(manifest, {}, artifacts)
    add_deltas(manifest, {"files": {"infer.int8-qdq.onnx": [measured(NOISE, b"lost")]}}, artifacts)
    assert manifest.SerializeToString(deterministic=True) == plain


def test_a_manifest_that_would_be_too_large_goes_without(artifacts: ArtifactStore, bundles: Bundles) -> None:
    candidate = bundles.put("candidate", files(2))
    manifest = bundles.manifest(candidate)
    delta = b"small"
    artifacts.put_bytes(delta)
    manifest.features_output = "x" * 123_000
    add_deltas(manifest, {"files": {"infer.int8-qdq.onnx": [measured(NOISE, delta)]}}, artifacts)
    assert not manifest.files[0].deltas
