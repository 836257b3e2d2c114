"""Buffered asynchronous campaigns: nobody waits for the slowest, late updates count by their age, nothing is lost."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from skerry_server.federation.rounds.round_loop import RoundFailedError
from unit.federation.fakes import FakeDevice
from unit.federation.world import World

SLOW_S, FAST_S = 10.0, 1.0


def fleet(*, slow: bool = True) -> list[FakeDevice]:
    devices = [FakeDevice(name, node, adds=1.0, delay_s=FAST_S) for node, name in enumerate("abc", start=1)]
    return [*devices, FakeDevice("z", 26, adds=1.0, delay_s=SLOW_S)] if slow else devices


def buffered(folder: Path, devices: list[FakeDevice], *, buffer: int = 3, rounds: int = 8, **settings: Any) -> World:
    folder.mkdir(exist_ok=True)
    options = {"buffer": buffer, "staleness_exponent": 0.5}
    return World(
        folder,
        devices,
        strategy="fedbuff",
        mode="buffered",
        strategy_settings=options,
        rounds=rounds,
        **settings,
    )


def test_a_tenfold_slower_device_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "rounds").mkdir()
    worlds = {
        "rounds": World(tmp_path / "rounds", fleet(), rounds=8, quorum=1.0),
        "buffered": buffered(tmp_path / "buffered", fleet()),
    }
    to_target: dict[str, float] = {}
    for name, world in worlds.items():
        world.run().run()
        reached = next(number for number, level in enumerate(world.models(), 1) if level >= 6.0)
        to_target[name] = sum(record.seconds for record in world.journal.rounds()[:reached])
    assert to_target["buffered"] <= 0.5 * to_target["rounds"]


def test_a_late_update_counts_by_its_age(tmp_path: Path) -> None:
    devices = [FakeDevice("a", 1, adds=1.0, delay_s=1.0), FakeDevice("z", 26, adds=4.0, delay_s=2.6)]
    world = buffered(tmp_path, devices, buffer=1, rounds=4, quorum=1.0)
    world.run().run()
    ages = [update.metrics["staleness"] for number in range(1, 5) for update in world.journal.recorded(number)]
    assert 2.0 in ages  # z started from version 0 and came when there were two more
    late = next(number for number in range(1, 5) if world.journal.recorded(number)[0].device_id == "z")
    before = world.models()[late - 2]
    # One update two versions old in a buffer of one: the step is 4 / sqrt(1 + 2), from where the model is now.
    assert world.models()[late - 1] - before == pytest.approx(4.0 / 3.0**0.5, rel=1e-5)
    assert world.journal.rounds()[late - 1].metrics["staleness"] == 2.0


def test_a_device_counts_once_per_version(tmp_path: Path) -> None:
    devices = [FakeDevice("a", 1, delay_s=0.1), FakeDevice("b", 2, delay_s=3.0)]
    world = buffered(tmp_path, devices, buffer=2, rounds=3, quorum=1.0)
    world.run().run()
    for number in (1, 2, 3):
        assert [update.device_id for update in world.journal.recorded(number)] == ["a", "b"]


def test_the_quorum_is_enough_at_the_deadline(tmp_path: Path) -> None:
    devices = fleet(slow=False)
    devices[2].faults = deque(["silent"] * 99)
    world = buffered(tmp_path, devices, rounds=2, quorum=0.6, round_deadline_ms=5_000)
    world.run().run()
    rounds = world.journal.rounds()
    assert [record.accepted for record in rounds] == [2, 2]
    assert rounds[1].failures == {"c": "no answer"}
    assert all(record.seconds < 6.0 for record in rounds)


def test_too_few_at_the_deadline_fail_the_campaign(tmp_path: Path) -> None:
    devices = fleet(slow=False)
    for each in devices[1:]:
        each.faults = deque(["refuse"] * 99)
    world = buffered(tmp_path, devices, rounds=2, quorum=1.0, round_deadline_ms=5_000)
    with pytest.raises(RoundFailedError, match="1 of at least 3 devices answered") as caught:
        world.run().run()
    assert caught.value.failures["b"].startswith("few-samples: 3 labelled samples")
    assert world.journal.rounds() == []
    assert [update.device_id for update in world.journal.recorded(1)] == ["a"]


def test_an_update_that_is_too_old_is_rejected_and_its_device_works_on(tmp_path: Path) -> None:
    devices = [FakeDevice("a", 1, delay_s=1.0), FakeDevice("z", 26, delay_s=5.5)]
    world = buffered(tmp_path, devices, buffer=1, rounds=12, quorum=1.0)
    world.settings.strategy_settings["maximum_staleness"] = 3
    world.run().run()
    failures = [record.failures.get("z", "") for record in world.journal.rounds()]
    assert any("rejected: 5 versions behind, more than 3" in reason for reason in failures)
    assert devices[1].asked >= 2


@pytest.mark.parametrize("lost_at", [1, 4])
def test_a_lost_run_goes_on_with_what_counted(tmp_path: Path, lost_at: int) -> None:
    devices = fleet(slow=False)
    devices[1].delay_s = 1.5
    devices[1].faults = deque([""] * (lost_at - 1) + ["lost"])
    world = buffered(tmp_path, devices, rounds=5, quorum=1.0)
    result = world.run().run()
    assert (result.rounds, len(world.exchanges)) == (5, 2)
    assert world.models() == pytest.approx([1, 2, 3, 4, 5])


def test_encoded_updates_of_older_versions_are_decoded_against_their_own_base(tmp_path: Path) -> None:
    devices = [FakeDevice("a", 1, adds=1.0, delay_s=1.0), FakeDevice("z", 26, adds=4.0, delay_s=2.6)]
    world = buffered(tmp_path, devices, buffer=1, rounds=4, quorum=1.0, wire="int8", down_wire="int8")
    world.run().run()
    late = next(number for number in range(1, 5) if world.journal.recorded(number)[0].device_id == "z")
    assert world.models()[late - 1] - world.models()[late - 2] == pytest.approx(4.0 / 3.0**0.5, rel=0.02)
    assert {down for down, _ in devices[0].wires[1:3]} == {"int8"}
    assert devices[1].wires[1][0] == "float32"  # what it had is too old to be a base
