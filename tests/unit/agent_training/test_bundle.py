"""Slots to trainers: only what is signed and whole is used, and the golden step must come out right."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.training.bundle import TrainingBundles
from skerry_agent.update.slots import MANIFEST, Pointer, SlotName, slot_folder, write_pointer
from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.signing import RELEASE, Ed25519Signer, Ed25519Verifier
from skerry_contract.v1.release_pb2 import ReleaseManifest, Variant
from unit.agent_training.linear_graphs import linear_graphs

SIGNER = Ed25519Signer(Ed25519PrivateKey.generate())


def stage(layout: AgentLayout, slot: SlotName, *, momentum: float = 0.9, off_by: float = 0.0, leave: str = "") -> str:
    """Fill a slot; returns the digest of its train step."""
    graphs = linear_graphs(momentum=momentum)
    folder = slot_folder(layout, slot)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    files = {
        "infer.onnx": graphs.evaluate,
        "evaluate.onnx": graphs.evaluate,
        "train_step.onnx": graphs.step,
        "train_step.pb": graphs.spec.SerializeToString(),
        "golden_step.pb": graphs.golden(off_by=off_by).SerializeToString(),
    }
    for name, data in files.items():
        if name != leave:
            (folder / name).write_bytes(data)
    entries = list(describe_folder(folder))
    digests = {entry.path: entry.sha256 for entry in entries}
    manifest = ReleaseManifest(
        release_id=f"moons-{slot}",
        task="moons",
        bundle_sha256=bundle_digest(entries),
        files=entries,
        variants=[Variant(name="fp32", path="infer.onnx")],
        train_step_sha256=digests.get("train_step.onnx", b""),
    )
    (folder / MANIFEST).write_bytes(SIGNER.sign(RELEASE, manifest.SerializeToString()).SerializeToString())
    return manifest.train_step_sha256.hex()


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    return AgentLayout(tmp_path)


@pytest.fixture
def bundles(layout: AgentLayout) -> TrainingBundles:
    return TrainingBundles(layout, Ed25519Verifier([SIGNER.public_key]))


def activate(layout: AgentLayout, slot: SlotName) -> None:
    write_pointer(layout, Pointer(slot=slot, release_id=f"moons-{slot}", committed=True))


def test_a_fresh_device_has_nothing(bundles: TrainingBundles) -> None:
    with pytest.raises(ArtifactError, match="no release is installed yet"):
        bundles.check_active()
    with pytest.raises(ArtifactError, match="no release is installed yet"):
        bundles.open("00" * 32)


def test_the_active_and_the_other_slot_are_found(layout: AgentLayout, bundles: TrainingBundles) -> None:
    in_a, in_b = stage(layout, "a"), stage(layout, "b", momentum=0.5)
    activate(layout, "a")
    assert bundles.active_digest() == in_a
    assert bundles.open(in_a).release_id == "moons-a"
    assert bundles.open(in_b).release_id == "moons-b"
    with pytest.raises(ArtifactError, match=f"is not installed, only {in_a[:12]}, {in_b[:12]}"):
        bundles.open("00" * 32)


def test_a_trainer_outlives_the_slot_that_it_came_from(layout: AgentLayout, bundles: TrainingBundles) -> None:
    digest = stage(layout, "a")
    activate(layout, "a")
    bundle = bundles.open(digest)
    stage(layout, "a", momentum=0.5)
    assert bundles.open(digest) is bundle


@pytest.mark.parametrize("name", ["train_step.onnx", "train_step.pb", "golden_step.pb", "evaluate.onnx"])
def test_a_damaged_file_is_refused(layout: AgentLayout, bundles: TrainingBundles, name: str) -> None:
    digest = stage(layout, "a")
    activate(layout, "a")
    path = slot_folder(layout, "a") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="digest of the manifest"):
        bundles.open(digest)


@pytest.mark.parametrize("name", ["train_step.pb", "golden_step.pb", "evaluate.onnx"])
def test_a_bundle_without_what_training_needs_is_refused(
    layout: AgentLayout, bundles: TrainingBundles, name: str
) -> None:
    digest = stage(layout, "a", leave=name)
    activate(layout, "a")
    with pytest.raises(ArtifactError, match=f"no file {name}"):
        bundles.open(digest)


def test_a_release_without_a_train_step_cannot_be_trained(layout: AgentLayout, bundles: TrainingBundles) -> None:
    stage(layout, "a", leave="train_step.onnx")
    activate(layout, "a")
    with pytest.raises(ArtifactError, match="cannot be trained"):
        bundles.check_active()


def test_a_wrong_golden_step_keeps_the_device_out_and_is_not_repeated_at_once(
    layout: AgentLayout, bundles: TrainingBundles
) -> None:
    stage(layout, "a", off_by=0.1)
    activate(layout, "a")
    for _ in range(2):
        with pytest.raises(ArtifactError, match="golden step: loss is off by"):
            bundles.check_active()
    # Another train step is not affected, and frees the memory of the refusal only for itself.
    good = stage(layout, "b", momentum=0.5)
    assert bundles.open(good).release_id == "moons-b"


def test_a_slot_of_a_stranger_is_refused(layout: AgentLayout) -> None:
    stage(layout, "a")
    activate(layout, "a")
    stranger = Ed25519Signer(Ed25519PrivateKey.generate())
    with pytest.raises(ArtifactError, match="no signature of a trusted key"):
        TrainingBundles(layout, Ed25519Verifier([stranger.public_key])).check_active()
