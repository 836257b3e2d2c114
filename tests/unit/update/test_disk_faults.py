"""A disk that is full, broken or read-only, at every system call and in every state of an update.

Each time: the state says so, nothing is thrown, the old release answers, and the update goes on when the disk is back.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry_agent.update.journal import read_journal
from skerry_agent.update.update_machine import DISK_DEADLINE_S, State
from unit.update.device import TestDevice
from unit.update.releases import make_desired, make_release

OLD, NEW = make_release("digits-1"), make_release("digits-2")
ERRORS = {
    errno.ENOSPC: "waits for free space",
    errno.EDQUOT: "waits for free space",
    errno.EIO: "",
    errno.EROFS: "",
}
STATES = ["need", "downloading", "verifying", "staging", "proving", "activating", "probation"]


@pytest.fixture
def memory() -> Iterator[Path]:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def served(memory: Path) -> Path:
    device = TestDevice(memory / "served", OLD)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    return device.layout.root


def failure(number: int, path: Path | None) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def healed(device: TestDevice, where: str) -> None:
    device.disk.fail = lambda call, path: None
    device.settle()
    assert device.updater.snapshot.state is State.COMMITTED, where
    assert device.answering() == device.serving.release_id == "digits-2", where
    assert device.approvals.floor() == 2, where
    assert read_journal(device.layout).failures == {}, f"{where}: a broken disk is not the fault of the release"


def test_every_call(served: Path, memory: Path, record_property: Callable[[str, object], None]) -> None:
    """From each call on everything fails, for minutes."""
    reference = TestDevice(shutil.copytree(served, memory / "reference"), OLD, NEW)
    reference.updater.offer(make_desired(2, NEW))
    reference.settle()
    total, texts = len(reference.disk.calls), set()
    assert total > 60
    for first in range(total):
        number = list(ERRORS)[first % len(ERRORS)]
        device = TestDevice(shutil.copytree(served, memory / "work"), OLD, NEW)

        def fail(
            call: str, path: Path | None, device: TestDevice = device, first: int = first, number: int = number
        ) -> OSError | None:
            return failure(number, path) if len(device.disk.calls) > first else None

        device.disk.fail = fail
        device.updater.offer(make_desired(2, NEW))
        for _ in range(60):
            device.step()
        where = f"call {first}, {reference.disk.calls[first]}, {os.strerror(number)}, {device.updater.snapshot}"
        assert device.answering() == device.serving.release_id, where
        assert device.updater.snapshot.state not in (State.ROLLED_BACK, State.QUARANTINED), where
        if device.updater.busy:
            assert os.strerror(number) in device.updater.snapshot.detail, where
            assert ERRORS[number] in device.updater.snapshot.detail, where
            texts.add(device.updater.snapshot.detail.split(":")[0])
        healed(device, where)
        shutil.rmtree(memory / "work")
    assert texts >= {"waits for free space", "the disk fails", "waits for a disk that can be written"}
    record_property("summary", f"disk faults: {total} calls, each failing from there on: all recovered")


@pytest.mark.parametrize("number", list(ERRORS), ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("state", STATES)
def test_every_state(served: Path, state: str, number: int) -> None:
    device = TestDevice(served, OLD, NEW)
    failed: list[str] = []

    def fail(call: str, path: Path | None) -> OSError | None:
        if device.updater.snapshot.state.value != state:
            return None
        failed.append(call)
        return failure(number, path)

    device.disk.fail = fail
    device.updater.offer(make_desired(2, NEW))
    for _ in range(200):
        device.step()
    said = device.updater.snapshot
    assert said.state.value == state
    assert os.strerror(number) in said.detail
    assert ERRORS[number] in said.detail
    assert failed
    new_answers = device.serving.release_id == "digits-2"
    assert new_answers == (state == "probation"), "until the switch the old release answers"
    assert device.answering() == device.serving.release_id
    healed(device, state)


@pytest.mark.parametrize("kind", ["create", "write", "truncate", "sync", "rename", "sync_folder", "link", "unlink"])
def test_every_kind_of_call(served: Path, kind: str) -> None:
    device = TestDevice(served, OLD, NEW)
    device.disk.fail = lambda call, path: failure(errno.ENOSPC, path) if call == kind else None
    device.updater.offer(make_desired(2, NEW))
    for _ in range(50):
        device.step()
    assert device.answering() == device.serving.release_id == "digits-1"
    healed(device, kind)


@pytest.mark.parametrize("number", list(ERRORS), ids=lambda number: errno.errorcode[number])
def test_a_disk_that_fails_when_the_agent_starts(served: Path, number: int) -> None:
    """A journal that is broken and cannot be put aside: nothing is thrown, and what answers goes on."""
    (served / "update" / "journal.json").write_bytes(b"{")
    device = TestDevice(served, OLD, NEW)
    device.disk.fail = lambda call, path: failure(number, path)
    restarted = TestDevice(served, OLD, NEW, disk=device.disk)
    restarted.updater.offer(make_desired(2, NEW))
    for _ in range(10):
        restarted.step()
    assert restarted.answering() == restarted.serving.release_id == "digits-1"
    device.disk.fail = lambda call, path: None
    restarted.settle()
    assert restarted.answering() == "digits-2"


def test_a_disk_that_never_comes_back_has_a_deadline(served: Path) -> None:
    device = TestDevice(served, OLD, NEW)

    def fail(call: str, path: Path | None) -> OSError | None:
        return failure(errno.EIO, path) if path is not None and "building" in str(path) else None

    device.disk.fail = fail
    device.updater.offer(make_desired(2, NEW))
    device.reach(State.STAGING)
    device.now += DISK_DEADLINE_S / 2
    device.step()
    device.step()
    assert device.updater.snapshot.state is State.STAGING
    device.now += DISK_DEADLINE_S / 2
    device.step()
    device.settle()
    assert device.chain[-1] == "rolled_back"
    assert "staging took more than 604800 s: the disk fails: Input/output error" in device.updater.snapshot.detail
    assert device.answering() == device.serving.release_id == "digits-1"


def test_a_release_committed_on_a_full_disk_never_goes_back(served: Path) -> None:
    """The pointer is committed, the floor cannot be written, and serving dies meanwhile."""
    device = TestDevice(served, OLD, NEW)
    device.disk.fail = lambda call, path: (
        failure(errno.ENOSPC, path) if path is not None and "trust" in path.parts else None
    )
    device.updater.offer(make_desired(2, NEW))
    for _ in range(50):
        device.step()
    device.serving.away = True
    device.now += 86_400
    for _ in range(50):
        device.step()
    assert device.updater.snapshot.state is State.PROBATION
    assert "waits for free space" in device.updater.snapshot.detail
    device.serving.away = False
    healed(device, "floor")
