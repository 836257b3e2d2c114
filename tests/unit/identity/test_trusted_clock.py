"""The clock of a machine that may believe anything."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.trusted_clock import KEEP_MS, LATEST_MS, SLACK_MS, TrustedClock, trusted_ms
from unit.update.disks import TestDisk

#: 2026-01-01T00:00:00Z.
NEW_YEAR_MS = 1_767_225_600_000
DAY_MS = 86_400_000


class Times:
    """A wall clock that is set to anything and a monotonic one that goes on."""

    def __init__(self, wall_ms: int = NEW_YEAR_MS) -> None:
        self.wall_ms = wall_ms
        self.passed_s = 1000.0

    def clock(self, path: Path, disk: TestDisk | None = None) -> TrustedClock:
        return TrustedClock(
            path, wall=lambda: self.wall_ms / 1000, monotonic=lambda: self.passed_s, disk=disk or TestDisk()
        )


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def test_before_anything_is_learnt_the_wall_clock_is_all_there_is(tmp_path: Path) -> None:
    times = Times(wall_ms=0)
    clock = times.clock(tmp_path / "trust" / "clock.json")
    assert clock.now() == datetime(1970, 1, 1, tzinfo=UTC)
    assert (clock.floor_ms, clock.believable) == (0, True)
    assert not (tmp_path / "trust").exists()


def test_a_clock_in_1970_goes_on_from_the_floor(tmp_path: Path) -> None:
    times = Times(wall_ms=5_000)
    clock = times.clock(tmp_path / "clock.json")
    clock.learn(NEW_YEAR_MS)
    times.passed_s += 3_600
    assert clock.now() == datetime(2026, 1, 1, 1, tzinfo=UTC)
    assert not clock.believable
    # After a restart the time between is not known; the floor still is.
    times.passed_s += 1_000_000
    again = times.clock(tmp_path / "clock.json")
    assert again.now() == datetime(2026, 1, 1, tzinfo=UTC)
    assert not again.believable


def test_a_clock_that_jumps_ahead_and_back_leaves_no_trace(tmp_path: Path) -> None:
    times = Times()
    clock = times.clock(tmp_path / "clock.json")
    clock.learn(NEW_YEAR_MS)
    before = (tmp_path / "clock.json").read_bytes()
    times.wall_ms = NEW_YEAR_MS + 14 * 365 * DAY_MS
    assert clock.now().year == 2039
    clock.learn(NEW_YEAR_MS + 1_000)
    times.wall_ms = NEW_YEAR_MS + 2_000
    assert ms(clock.now()) == NEW_YEAR_MS + 2_000
    assert (tmp_path / "clock.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wall", "told"),
    [
        (NEW_YEAR_MS - SLACK_MS, NEW_YEAR_MS - SLACK_MS),
        (NEW_YEAR_MS - SLACK_MS - 1, NEW_YEAR_MS + 7),
        (NEW_YEAR_MS + 10**9, NEW_YEAR_MS + 10**9),
        (-(10**12), NEW_YEAR_MS + 7),
    ],
)
def test_a_day_behind_the_floor_is_the_limit(wall: int, told: int) -> None:
    assert trusted_ms(wall, NEW_YEAR_MS, 7) == told


@given(st.lists(st.integers(-(10**15), 10**17), max_size=20))
def test_the_floor_only_rises_and_is_a_moment_that_was_learnt(moments: list[int]) -> None:
    clock = TrustedClock(Path("/nonexistent/clock.json"), wall=lambda: 0.0, monotonic=lambda: 0.0, disk=FullDisk())
    seen = [0]
    for moment in moments:
        clock.learn(moment)
        seen.append(clock.floor_ms)
        clock.now()
    assert seen == sorted(seen)
    assert clock.floor_ms == max([0, *(moment for moment in moments if moment <= LATEST_MS)])


class FullDisk(TestDisk):
    """No room for anything."""

    def __init__(self) -> None:
        super().__init__()
        self.fail = lambda call, path: OSError(28, "No space left on device")


def test_the_floor_is_written_when_it_rose_by_more_than_a_minute(tmp_path: Path) -> None:
    path, disk = tmp_path / "clock.json", TestDisk()
    clock = Times().clock(path, disk)

    def kept() -> int:
        return int(json.loads(path.read_text())["floor_ms"])

    clock.learn(NEW_YEAR_MS)
    assert kept() == NEW_YEAR_MS
    calls = len(disk.calls)
    clock.learn(NEW_YEAR_MS + KEEP_MS)
    assert (kept(), len(disk.calls), clock.floor_ms) == (NEW_YEAR_MS, calls, NEW_YEAR_MS + KEEP_MS)
    clock.learn(NEW_YEAR_MS + KEEP_MS + 1)
    assert kept() == NEW_YEAR_MS + KEEP_MS + 1


def test_a_full_disk_costs_only_the_memory_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, disk = tmp_path / "clock.json", FullDisk()
    clock = Times().clock(path, disk)
    clock.learn(NEW_YEAR_MS)
    assert clock.floor_ms == NEW_YEAR_MS
    assert "cannot be kept" in caplog.text
    assert not path.exists()
    disk.fail = lambda call, path: None
    clock.learn(NEW_YEAR_MS + 1)
    assert json.loads(path.read_text()) == {"floor_ms": NEW_YEAR_MS + 1}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"floor_ms": "x"}', '{"floor_ms": -1}', '{"floor_ms": 1e30}', '{"floor_ms": true}']
)
def test_a_broken_file_is_learnt_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clock.json"
    path.write_text(text)
    clock = Times().clock(path)
    assert clock.floor_ms == 0
    clock.learn(NEW_YEAR_MS)
    assert Times().clock(path).floor_ms == NEW_YEAR_MS


def test_threads_that_learn_at_once_end_at_the_latest(tmp_path: Path) -> None:
    clock = Times().clock(tmp_path / "clock.json")

    def learn(first: int) -> None:
        for step in range(50):
            clock.learn(NEW_YEAR_MS + (first + 4 * step) * 2 * KEEP_MS)

    threads = [threading.Thread(target=learn, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert clock.floor_ms == NEW_YEAR_MS + 199 * 2 * KEEP_MS
    assert Times().clock(tmp_path / "clock.json").floor_ms == clock.floor_ms
