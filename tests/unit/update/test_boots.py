"""A release that takes the machine down: the counter, and what the next lives make of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from skerry_agent.config import AgentLayout
from skerry_agent.update.boots import (
    START_LIMIT,
    Boots,
    boots_path,
    count_start,
    forget_boots,
    read_boots,
    stopped_in_order,
)
from skerry_agent.update.journal import read_journal
from skerry_agent.update.pointer import Pointer, read_pointer, write_pointer
from skerry_agent.update.update_machine import State
from unit.update.device import TestDevice, snapshot
from unit.update.disks import TestDisk
from unit.update.releases import make_desired, make_release

OLD, NEW, THIRD = make_release("digits-1"), make_release("digits-2"), make_release("digits-3")


def on_probation(root: Path) -> AgentLayout:
    layout = AgentLayout(root)
    write_pointer(layout, Pointer("b", "digits-2", committed=False, previous_slot="a", previous_release="digits-1"))
    return layout


def test_the_third_start_goes_back_before_anything_runs(tmp_path: Path) -> None:
    layout = on_probation(tmp_path)
    for starts in (1, 2):
        count_start(layout)
        assert read_boots(layout) == Boots("digits-2", starts)
        pointer = read_pointer(layout)
        assert pointer is not None
        assert pointer.release_id == "digits-2"
    count_start(layout)
    assert read_pointer(layout) == Pointer("a", "digits-1", committed=True)
    boots = read_boots(layout)
    assert (boots.gave_up("digits-2"), boots.gave_up("digits-1")) == (True, False)
    count_start(layout)
    assert read_boots(layout).starts == START_LIMIT == 3, "a committed release is not counted"


def test_a_start_after_a_stop_in_order_does_not_count(tmp_path: Path) -> None:
    layout = on_probation(tmp_path)
    for _ in range(10):
        count_start(layout)
        stopped_in_order(layout)
    assert read_boots(layout) == Boots("digits-2", 0)


def test_without_a_release_on_probation_nothing_is_written(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    for change in (count_start, stopped_in_order, forget_boots):
        change(layout)
    assert snapshot(tmp_path) == {}
    write_pointer(layout, Pointer("a", "digits-1", committed=True))
    before = snapshot(tmp_path)
    count_start(layout)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"release_id": "digits-2"}', b'{"release_id": "a", "starts": "x"}']
)
def test_a_broken_counter_begins_anew(tmp_path: Path, data: bytes) -> None:
    layout = on_probation(tmp_path)
    layout.update.mkdir()
    boots_path(layout).write_bytes(data)
    count_start(layout)
    assert read_boots(layout) == Boots("digits-2", 1)


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    layout = on_probation(tmp_path)
    count_start(layout)
    count_start(layout)
    before = snapshot(tmp_path)
    disk = TestDisk()
    disk.fail = lambda call, path: OSError(errno.ENOSPC, "No space left on device", str(path))
    with pytest.raises(OSError, match="No space left"):
        count_start(layout, disk)
    assert snapshot(tmp_path) == before


def test_a_release_that_takes_the_machine_down_goes_and_counts_once(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, OLD, NEW, THIRD)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.updater.offer(make_desired(2, NEW, probation_ms=60_000))
    device.reach(State.PROBATION)
    for start in (1, 2, 3):
        device = TestDevice(tmp_path, OLD, NEW, THIRD)
        assert device.serving.release_id == ("digits-2" if start < 3 else "digits-1"), "serving follows the pointer"
        if start < 3:
            device.step()
    device.settle()
    assert device.updater.snapshot.state is State.ROLLED_BACK
    assert "the agent was started 3 times on its probation" in device.updater.snapshot.detail
    assert read_journal(device.layout).failures == {NEW.digest: 1}
    assert device.answering() == "digits-1"
    device.updater.offer(make_desired(3, NEW))
    device.settle()
    assert device.answering() == "digits-2", "another attempt counts its starts anew"


def test_the_count_of_an_earlier_attempt_does_not_end_the_next_one(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, OLD, NEW)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.updater.offer(make_desired(2, NEW, probation_ms=60_000))
    device.reach(State.PROBATION)
    for _ in range(3):
        device = TestDevice(tmp_path, OLD, NEW)
    device.settle()
    device.updater.offer(make_desired(3, NEW, probation_ms=5_000))
    device.reach(State.ACTIVATING)
    device = TestDevice(tmp_path, OLD, NEW)
    device.settle()
    assert device.updater.snapshot.state is State.COMMITTED


def test_serving_that_gave_its_last_start_in_activating_is_not_switched_again(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, OLD, NEW)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.updater.offer(make_desired(2, NEW))
    device.serving.away = True
    device.reach(State.ACTIVATING)
    device.step()
    for _ in range(3):
        device = TestDevice(tmp_path, OLD, NEW)
    device.settle()
    assert device.updater.snapshot.state is State.ROLLED_BACK
    assert device.answering() == device.serving.release_id == "digits-1"
