"""The power is cut at every system call of an update, before it and in the middle of writes.

Every call is enumerated, and with each everything that a page cache may have kept from the disk (:mod:`page_cache`).
After each cut: an approved release answers, whole to the last byte, and none older than one that was committed for good
before; the next life brings the update to its right end. That next life is cut in turn, and must leave the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest

from skerry_agent.update.slots import MANIFEST, read_pointer
from skerry_agent.update.update_machine import State
from skerry_contract.delta_writer import Match, write_delta
from skerry_contract.manifest import parse_manifest
from skerry_contract.signing import RELEASE
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import ReleaseManifest
from unit.update.device import TestDevice
from unit.update.page_cache import CachedDisk, Cut, Image, materialise
from unit.update.releases import VERIFIER, MadeRelease, make_desired, make_release

#: Every so many states of a first life, the next life is cut at each of its calls too.
SECOND_LIVES = 12
#: Most states of second cuts that are brought to their end, evenly chosen.
SECOND_CUTS = 16


def small(release_id: str) -> MadeRelease:
    """Two chunks, a file that every release shares, an empty one: each kind of work once."""
    seed = hashlib.sha256(release_id.encode()).digest()
    files = {"infer.onnx": seed * 6, "model_card.md": b"same card\n", "extra/empty.bin": b""}
    return make_release(release_id, files=files, chunk_bytes=128)


def by_delta() -> tuple[MadeRelease, MadeRelease]:
    """Two releases, the second of which is made from the first by a delta of two chunks."""
    old = hashlib.sha256(b"weights").digest() * 20
    new = old[:300] + bytes(8) + old[308:]
    first = make_release("digits-1", files={"infer.onnx": old}, chunk_bytes=128)
    deltas = [("infer.onnx", old, write_delta(old, new, [Match(0, 0, len(old), 1)]))]
    return first, make_release("digits-2", files={"infer.onnx": new}, chunk_bytes=128, deltas=deltas)


OLD, NEW = small("digits-1"), small("digits-2")
DELTA_OLD, DELTA_NEW = by_delta()
ONLY = make_release("digits-2", files={"infer.onnx": b"weights" * 20}, chunk_bytes=100)


@dataclass(frozen=True)
class Scenario:
    """An update.

    Attributes:
        before: Releases that the device had, in their order; the last one answers.
        wanted: The release that the next desired state names.
        version: Under which it is approved.
        end: State in which it must end.
        answers: Release that must answer then.
        prepare: What is wrong.
    """

    before: tuple[MadeRelease, ...]
    wanted: MadeRelease
    version: int
    end: State
    answers: str
    prepare: Callable[[TestDevice], None] = field(default=lambda device: None)


def fail_requests(device: TestDevice) -> None:
    device.serving.failing.add("digits-2")


def refuse_proof(device: TestDevice) -> None:
    device.prover.refuse.add("digits-2")


SCENARIOS = {
    "a newer release": Scenario((OLD,), NEW, 2, State.COMMITTED, "digits-2"),
    "a newer release by its delta": Scenario((DELTA_OLD,), DELTA_NEW, 2, State.COMMITTED, "digits-2"),
    "the first release": Scenario((), ONLY, 2, State.COMMITTED, "digits-2"),
    "an older release approved anew": Scenario((OLD, NEW), OLD, 3, State.COMMITTED, "digits-1"),
    "rolled back on probation": Scenario((OLD,), NEW, 2, State.ROLLED_BACK, "digits-1", fail_requests),
    "the first release rolled back": Scenario((), ONLY, 2, State.ROLLED_BACK, "", fail_requests),
    "refused by its proof": Scenario((OLD,), NEW, 2, State.QUARANTINED, "digits-1", refuse_proof),
}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where the machine has one: hundreds of devices are made, and none needs to last."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@lru_cache(maxsize=64)
def manifest_of(envelope: bytes) -> ReleaseManifest:
    return parse_manifest(VERIFIER.verify(RELEASE, SignedEnvelope.FromString(envelope)))


def content(image: Image, name: str) -> bytes:
    entry = image[name]
    assert entry is not None, name
    return entry[0]


def served(image: Image, slot: str, release_id: str) -> None:
    """Assert that a slot of an image holds exactly what its signed manifest says."""
    manifest = manifest_of(content(image, f"slots/{slot}/{MANIFEST}"))
    assert manifest.release_id == release_id
    expected = {f"slots/{slot}/{entry.path}": entry.sha256 for entry in manifest.files}
    there = {
        name: hashlib.sha256(entry[0]).digest()
        for name, entry in image.items()
        if name.startswith(f"slots/{slot}/") and not name.endswith(MANIFEST) and entry is not None
    }
    assert there == expected


class Guard:
    """Looks at every image: what the pointer names is whole, and never older than what was committed for good."""

    def __init__(self, scenario: Scenario) -> None:
        self._versions = {"": 0, "digits-1": 1, "digits-2": 2, scenario.wanted.manifest.release_id: scenario.version}
        if len(scenario.before) == 2:
            # In this update the older release has two versions: the one of before is below every floor.
            self._versions["digits-1"] = 3
        self._call, self._lowest = -1, 0
        self.committed = 0

    def __call__(self, cut: Cut) -> None:
        try:
            version = self._version(cut.image)
        except (AssertionError, KeyError, ValueError) as error:
            raise AssertionError(f"call {cut.call}, {cut.what}: {error!r}") from error
        if cut.call != self._call:
            # All images of one call are possible: what is committed in each of them is committed for good.
            self.committed = max(self.committed, self._lowest)
            self._call, self._lowest = cut.call, version
        self._lowest = min(self._lowest, version)
        assert version >= self.committed, f"call {cut.call}, {cut.what}: back to {version} from {self.committed}"

    def _version(self, image: Image) -> int:
        """Version that a start from this image can go back to at most; what answers is checked."""
        entry = image.get("slots/active.json")
        floor = image.get("trust/floors.json")
        floor_version = 0 if floor is None else int(json.loads(floor[0])["digits"])
        if entry is None:
            assert floor_version == 0, "the floor is above nothing"
            return 0
        pointer = json.loads(entry[0])
        served(image, pointer["slot"], pointer["release_id"])
        if pointer["previous_slot"] is not None:
            served(image, pointer["previous_slot"], pointer["previous_release"])
        version = self._versions[pointer["release_id"] if pointer["committed"] else pointer["previous_release"]]
        assert floor_version <= version, f"the floor {floor_version} is above what answers, {version}"
        return version


def revive(root: Path, scenario: Scenario, disk: CachedDisk | None = None) -> TestDevice:
    device = TestDevice(root, *scenario.before, scenario.wanted, disk=disk)
    device.approvals.versions[scenario.wanted.manifest.release_id] = scenario.version
    scenario.prepare(device)
    return device


def finish(device: TestDevice, scenario: Scenario, where: str) -> None:
    """The desired state comes, again or for the first time; the update ends as it must."""
    device.updater.offer(make_desired(9, scenario.wanted))
    device.settle()
    assert device.answering() == scenario.answers, where
    # Where nothing is left to go back to, serving keeps what it has loaded until it starts again.
    assert device.serving.release_id == scenario.answers or scenario.answers == "", where
    assert device.updater.snapshot.state is scenario.end, where
    pointer = read_pointer(device.layout)
    assert (pointer is None) == (scenario.answers == ""), where
    assert pointer is None or pointer.committed, where
    committed = scenario.version if scenario.end is State.COMMITTED else len(scenario.before)
    assert device.approvals.floor() == committed, where
    assert not list((device.layout.update / "downloads").glob("*")), where
    assert not list(device.layout.root.rglob(".*.tmp")), where


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_system_call(name: str, memory: Path, record_property: Callable[[str, object], None]) -> None:
    scenario = SCENARIOS[name]
    root = memory / "device"
    root.mkdir()
    for sequence, release in enumerate(scenario.before, start=1):
        device = TestDevice(root, *scenario.before)
        device.updater.offer(make_desired(sequence, release))
        device.settle()
    calls, states, second = run(root, memory, scenario)
    assert calls > 40, "an update makes more system calls than that"
    text = f"power cuts, {name}: {calls} points, {states} states, then {second} states of second cuts: all recovered"
    record_property("summary", text)
    print(text)


def run(root: Path, memory: Path, scenario: Scenario) -> tuple[int, int, int]:
    """Cut the power everywhere; returns the numbers of points, states and states after a second cut."""
    guard = Guard(scenario)
    first = shutil.copytree(root, memory / "first")
    disk = CachedDisk(first, inspect=guard)
    device = revive(first, scenario, disk)
    finish(device, scenario, "")
    asked = {request.file_sha256.hex() for request in device.wire.requests}
    assert {hashlib.sha256(delta).hexdigest() for delta in scenario.wanted.deltas} <= asked
    disk.finish()
    disk.check_model()
    again: dict[frozenset[object], Cut] = {}
    for number, cut in enumerate(disk.cuts):
        where = f"cut {cut.call} in {cut.what}"
        work = memory / "work"
        work.mkdir()
        materialise(cut.image, work)
        if number % SECOND_LIVES == 0:
            second = CachedDisk(work, inspect=Guard(scenario))
            finish(revive(work, scenario, second), scenario, where)
            again |= {frozenset(seen.image.items()): seen for seen in second.cuts}
        else:
            finish(revive(work, scenario), scenario, where)
        shutil.rmtree(work)
    known = {frozenset(cut.image.items()) for cut in disk.cuts}
    fresh = [cut for image, cut in again.items() if image not in known]
    chosen = fresh[:: max(1, -(-len(fresh) // SECOND_CUTS))]
    for cut in chosen:
        work = memory / "work"
        work.mkdir()
        materialise(cut.image, work)
        finish(revive(work, scenario), scenario, f"second cut {cut.call} in {cut.what}")
        shutil.rmtree(work)
    return disk.points, len(disk.cuts), len(chosen)
