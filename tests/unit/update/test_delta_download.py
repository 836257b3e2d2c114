"""A release by deltas: what is asked for, what happens when a base or a delta is wrong, space, processes, restarts."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.update.applier import SubprocessApplier
from skerry_agent.update.delta import REFUSALS
from skerry_agent.update.ports import DeltaApplier
from skerry_agent.update.update_machine import State
from skerry_contract.delta_writer import Match, write_delta
from skerry_contract.v1.delivery_pb2 import Chunk
from unit.update.appliers import Stuck
from unit.update.device import TestDevice
from unit.update.releases import MadeRelease, make_desired, make_release

Wait = Callable[..., None]
SIZE = 20_000


def weights(seed: int, moved: int = 0) -> bytes:
    """int8 weights; ``moved`` rounds of training later."""
    values = np.random.default_rng(seed).integers(-127, 128, SIZE).astype(np.int8)
    for number in range(moved):
        values = values + np.random.default_rng([seed, number]).integers(-1, 2, SIZE).astype(np.int8)
    return values.tobytes()


OLD_WEIGHTS, NEW_WEIGHTS, OTHER = weights(1), weights(1, moved=1), weights(2)
DELTA = write_delta(OLD_WEIGHTS, NEW_WEIGHTS, [Match(0, 0, SIZE, 1)])
OLD = make_release("digits-1", files={"infer.onnx": OLD_WEIGHTS, "model_card.md": b"card\n"})
OTHER_OLD = make_release("digits-1", files={"infer.onnx": OTHER, "model_card.md": b"card\n"})


def new_release(*deltas: tuple[str, bytes, bytes]) -> MadeRelease:
    return make_release("digits-2", files={"infer.onnx": NEW_WEIGHTS, "model_card.md": b"card\n"}, deltas=deltas)


NEW_DELTAS = [("infer.onnx", OLD_WEIGHTS, DELTA)]
NEW = new_release(*NEW_DELTAS)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def had(
    root: Path, release: MadeRelease, *known: MadeRelease, new_applier: Callable[[], DeltaApplier] | None = None
) -> TestDevice:
    """A device that committed a release."""
    device = TestDevice(root, release, *known, new_applier=new_applier)
    device.updater.offer(make_desired(1, release))
    device.settle()
    assert device.answering() == release.manifest.release_id
    device.wire.requests.clear()
    device.events.clear()
    return device


def update(device: TestDevice, release: MadeRelease = NEW) -> None:
    device.updater.offer(make_desired(2, release))
    device.settle()


def asked(device: TestDevice) -> set[bytes]:
    """Digests of which chunks were asked for."""
    return {request.file_sha256 for request in device.wire.requests if any(request.missing_bitmap)}


def downloaded(device: TestDevice) -> str:
    """What the device told when the download was over."""
    return next(event.detail for event in device.events if event.to_state == "verifying")


def test_only_the_delta_is_asked_for(tmp_path: Path) -> None:
    assert len(DELTA) < SIZE / 3
    device = had(tmp_path, OLD, NEW)
    before = device.wire.published
    update(device)
    assert device.answering() == "digits-2"
    assert asked(device) == {sha256(DELTA)}
    assert device.wire.published - before == -(-len(DELTA) // 1024)
    assert device.wire.opened[-1] == [sha256(DELTA).hex()]
    assert downloaded(device) == ""
    assert not list((tmp_path / "update" / "downloads").glob("*"))


def test_the_smallest_delta_with_a_base_is_taken(tmp_path: Path) -> None:
    release = new_release(("infer.onnx", OTHER, b"smaller, of a base that is not here"), *NEW_DELTAS)
    device = had(tmp_path, OLD, release)
    update(device, release)
    assert asked(device) == {sha256(DELTA)}


@pytest.mark.parametrize("before", [None, OTHER_OLD], ids=["first release", "another base"])
def test_without_its_base_the_file_is_fetched_whole(tmp_path: Path, before: MadeRelease | None) -> None:
    device = TestDevice(tmp_path, NEW) if before is None else had(tmp_path, before, NEW)
    update(device)
    assert device.answering() == "digits-2"
    assert sha256(NEW_WEIGHTS) in asked(device)
    assert sha256(DELTA) not in asked(device)


def test_a_base_that_was_damaged_on_disk_is_no_base(tmp_path: Path) -> None:
    device = had(tmp_path, OLD, NEW)
    path = tmp_path / "slots" / "a" / "infer.onnx"
    path.write_bytes(OLD_WEIGHTS[:-1] + b"\0")
    update(device)
    assert device.answering() == "digits-2"
    assert sha256(DELTA) not in asked(device)


WRONG = {
    "another target": write_delta(OLD_WEIGHTS, OTHER)[: SIZE - 1],
    "another base": write_delta(OTHER, NEW_WEIGHTS, [Match(0, 0, SIZE, 1)])[: SIZE - 1],
    "no delta at all": b"noise" * 100,
    "a wrong difference": DELTA[:-9] + bytes(9),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_delta_that_does_not_lead_there_costs_a_whole_download(tmp_path: Path, name: str) -> None:
    release = new_release(("infer.onnx", OLD_WEIGHTS, WRONG[name]))
    device = had(tmp_path, OLD, release)
    update(device, release)
    assert device.answering() == "digits-2"
    assert asked(device) == {sha256(WRONG[name]), sha256(NEW_WEIGHTS)}
    assert downloaded(device).startswith("infer.onnx is fetched whole: delta")
    assert not list((tmp_path / "update" / "downloads").glob("*"))


def test_a_delta_that_the_server_refuses_is_given_up(tmp_path: Path) -> None:
    device = had(tmp_path, OLD, NEW)
    del device.wire.blobs[sha256(DELTA).hex()]
    device.updater.offer(make_desired(2, NEW))
    device.settle(turns=5_000)
    assert device.answering() == "digits-2"
    assert [request.file_sha256 for request in device.wire.requests].count(sha256(DELTA)) == REFUSALS
    assert "refused its delta: no such file" in downloaded(device)


def test_a_restart_keeps_the_chunks_of_the_delta(tmp_path: Path) -> None:
    first = had(tmp_path, OLD, NEW)
    kept: list[Chunk] = []

    def three(chunk: Chunk) -> list[Chunk]:
        kept.extend([chunk][: 3 - len(kept)])
        return [chunk] if chunk in kept else []

    first.wire.spoil = three
    first.updater.offer(make_desired(2, NEW))
    first.reach(State.DOWNLOADING)
    for _ in range(20):
        first.step()
    assert len(kept) == 3
    again = TestDevice(tmp_path, OLD, NEW)
    again.settle()
    assert again.answering() == "digits-2"
    assert again.wire.published == -(-len(DELTA) // 1024) - 3


def test_space_is_wanted_for_the_delta_and_for_the_file(tmp_path: Path) -> None:
    device = had(tmp_path, OLD, NEW)
    device.downloader.begin(NEW.manifest.files)
    needed = len(DELTA) + SIZE
    device.disk.free = needed + 1000 - 1
    progress = device.downloader.poll()
    assert progress.waits_for == (
        f"waits for free space: {needed} bytes to download and 1000 in reserve, {needed + 999} free"
    )
    device.disk.free += 1
    device.now += 10
    assert device.downloader.poll().waits_for == ""
    device.downloader.clean()


def test_a_full_disk_while_the_file_is_made_is_waited_for(tmp_path: Path) -> None:
    device = had(tmp_path, OLD, NEW)
    full = [True]

    def fail(call: str, path: Path | None) -> OSError | None:
        applied = call == "write" and path is not None and path.name.endswith(".applied")
        return OSError(errno.ENOSPC, "No space left on device") if full[0] and applied else None

    device.disk.fail = fail
    device.updater.offer(make_desired(2, NEW))
    for _ in range(60):
        device.step()
    assert device.updater.snapshot.state is State.DOWNLOADING
    assert "waits for free space" in device.updater.snapshot.detail
    assert device.answering() == "digits-1"
    assert not list((tmp_path / "update" / "downloads").glob("*.applied"))
    full[0] = False
    device.settle()
    assert device.answering() == "digits-2"
    assert asked(device) == {sha256(DELTA)}


def make(device: TestDevice, wait_until: Wait, condition: Callable[[], bool], what: str) -> None:
    """Turn the control loop of a device that applies deltas in processes of their own."""

    def turned() -> bool:
        device.step()
        return condition()

    wait_until(turned, what=what)


def test_a_file_is_made_while_the_loop_goes_on(tmp_path: Path, wait_until: Wait) -> None:
    stuck = Stuck(tmp_path / "written")
    device = had(tmp_path / "device", OLD, NEW, new_applier=stuck.applier)
    device.updater.offer(make_desired(2, NEW))
    make(device, wait_until, stuck.written.exists, "the first piece is written")
    for _ in range(5):
        device.step()
    assert device.updater.snapshot.state is State.DOWNLOADING
    device.updater.stop()
    again = TestDevice(tmp_path / "device", OLD, NEW, new_applier=SubprocessApplier)
    make(again, wait_until, lambda: again.updater.snapshot.state is State.COMMITTED, "the update is committed")
    assert again.answering() == "digits-2"
    assert again.wire.published == 0


def test_a_process_that_is_killed_costs_a_whole_download(tmp_path: Path, wait_until: Wait) -> None:
    stuck = Stuck(tmp_path / "written")
    device = had(tmp_path / "device", OLD, NEW, new_applier=stuck.applier)
    device.updater.offer(make_desired(2, NEW))
    make(device, wait_until, stuck.written.exists, "the first piece is written")
    stuck.kill()
    make(device, wait_until, lambda: device.updater.snapshot.state is State.COMMITTED, "the update is committed")
    assert device.answering() == "digits-2"
    assert asked(device) == {sha256(DELTA), sha256(NEW_WEIGHTS)}
    assert "ended with status -9" in downloaded(device)
    assert len(stuck.made) == 1


def test_one_process_at_a_time(tmp_path: Path, wait_until: Wait) -> None:
    """Also when the delta of the first file is complete while that of the second is being applied."""
    first, second = weights(3), weights(3, moved=1)
    files = {"infer.onnx": NEW_WEIGHTS, "large.onnx": second, "model_card.md": b"card\n"}
    deltas = [*NEW_DELTAS, ("large.onnx", first, write_delta(first, second, [Match(0, 0, SIZE, 1)]))]
    release = make_release("digits-2", files=files, deltas=deltas)
    old = make_release("digits-1", files={**files, "infer.onnx": OLD_WEIGHTS, "large.onnx": first})
    stuck = Stuck(tmp_path / "written")
    device = had(tmp_path / "device", old, release, new_applier=stuck.applier)
    late = [True]
    device.wire.spoil = lambda chunk: [] if late[0] and chunk.file_sha256 == sha256(DELTA) else [chunk]
    device.updater.offer(make_desired(2, release))
    make(device, wait_until, stuck.written.exists, "the first piece is written")
    late[0] = False

    def complete() -> bool:
        progress = device.downloader.poll()
        return progress.done == progress.total

    make(device, wait_until, complete, "both deltas are here")
    for _ in range(5):
        device.step()
    assert [applier.pid is not None for applier in stuck.made].count(True) == 1
    device.updater.stop()
