"""The power is cut at every system call of an update, before it and in the middle of writes.

After each cut the device must be able to answer with a release that was approved, whole to the last byte, and the next
life must bring the update to its right end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry_agent.update.slots import read_pointer
from skerry_agent.update.update_machine import State
from unit.update.device import PowerCut, TestDevice, TestDisk
from unit.update.releases import make_desired, make_release

OLD = make_release("digits-1")
NEW = make_release("digits-2")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where the machine has one: hundreds of devices are made, and none needs to last."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def served(memory: Path) -> Path:
    """A device that answers with the old release."""
    root = memory / "served"
    device = TestDevice(root, OLD)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    assert device.answering() == "digits-1"
    return root


def lives(
    template: Path | None, work: Path, prepare: Callable[[TestDevice], None], *, torn: bool, stride: int = 1
) -> Iterator[tuple[int, str, TestDevice]]:
    """For every (or every ``stride``-th) system call of the update to sequence 2: the device after a cut, restarted."""
    cut_at = 0
    while True:
        shutil.rmtree(work, ignore_errors=True)
        if template is not None:
            shutil.copytree(template, work)
        disk = TestDisk(cut_at=cut_at, torn=torn)
        device = TestDevice(work, OLD, NEW, disk=disk)
        prepare(device)
        try:
            device.updater.offer(make_desired(2, NEW))
            device.settle()
        except PowerCut:
            pass
        else:
            assert cut_at > 40, "the update made fewer system calls than an update makes"
            return
        restarted = TestDevice(work, OLD, NEW)
        prepare(restarted)
        yield cut_at, disk.calls[-1], restarted
        cut_at += stride


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_a_good_release(served: Path, memory: Path, torn: bool) -> None:
    for cut_at, call, device in lives(served, memory / "work", lambda device: None, torn=torn):
        where = f"cut {cut_at} in {call}"
        assert device.answering() in ("digits-1", "digits-2"), where
        assert device.serving.release_id == device.answering(), where
        device.updater.offer(make_desired(2, NEW))
        device.settle()
        assert device.answering() == "digits-2", where
        pointer = read_pointer(device.layout)
        assert pointer is not None, where
        assert pointer.committed, where
        assert device.updater.snapshot.state is State.COMMITTED, where
        assert device.serving.release_id == "digits-2", where
        assert not list((device.layout.update / "downloads").glob("*")), where


def test_a_release_that_the_proof_refuses(served: Path, memory: Path) -> None:
    def prepare(device: TestDevice) -> None:
        device.prover.refuse.add("digits-2")

    for cut_at, call, device in lives(served, memory / "work", prepare, torn=False, stride=5):
        where = f"cut {cut_at} in {call}"
        assert device.answering() == "digits-1", where
        device.updater.offer(make_desired(2, NEW))
        device.settle()
        assert device.updater.snapshot.state is State.QUARANTINED, where
        assert device.answering() == device.serving.release_id == "digits-1", where


def test_a_release_that_does_not_hold_on_probation(served: Path, memory: Path) -> None:
    def prepare(device: TestDevice) -> None:
        device.serving.failing.add("digits-2")

    for cut_at, call, device in lives(served, memory / "work", prepare, torn=False):
        where = f"cut {cut_at} in {call}"
        assert device.answering() in ("digits-1", "digits-2"), where
        device.updater.offer(make_desired(2, NEW))
        device.settle()
        assert device.updater.snapshot.state is State.ROLLED_BACK, where
        assert device.answering() == device.serving.release_id == "digits-1", where
        pointer = read_pointer(device.layout)
        assert pointer is not None, where
        assert pointer.committed, where


def test_the_first_release_of_a_device(memory: Path) -> None:
    for cut_at, call, device in lives(None, memory / "work", lambda device: None, torn=False):
        where = f"cut {cut_at} in {call}"
        assert device.answering() in ("", "digits-2"), where
        device.updater.offer(make_desired(2, NEW))
        device.settle()
        assert device.answering() == device.serving.release_id == "digits-2", where
