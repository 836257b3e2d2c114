"""Whole deliveries in simulated time: any loss, slow and stalled devices, late ones, and what all that costs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_server.delivery.carousel import SETTLE_S
from skerry_server.delivery.pacing import LEAD, SAMPLE, STALL_S, broadcast_from
from unit.delivery.fleet import Device, Fleet

COUNT = 60
ALL = (1 << COUNT) - 1


def fleet(size: int, *, count: int = COUNT, **settings: object) -> list[Device]:
    return [Device(f"d{number}", (1 << count) - 1, **settings) for number in range(size)]  # type: ignore[arg-type]  # by name


def finished(devices: list[Device]) -> float:
    return max(device.done_at or float("inf") for device in devices)


@pytest.mark.parametrize("size", [2, 10, 100])
def test_without_loss_every_chunk_leaves_the_server_once(size: int) -> None:
    run = Fleet(fleet(size), COUNT)
    run.run()
    assert (run.broadcasts, run.alone) == (COUNT, 0)
    reporting = min(size, SAMPLE)
    reports = sum(device.requests for device in run.devices.values())
    assert reports <= size * 2 + reporting * (COUNT // 8 + 4), "reports grow with the sample, not with the fleet"


def test_a_single_device_is_sent_every_chunk_once_and_never_more_than_its_window() -> None:
    (device,) = devices = fleet(1, window=5)
    run = Fleet(devices, COUNT)
    original = run.carousel.take

    def take(count: int, now: float) -> list[object]:
        sends = original(count, now)
        on_the_way = len(run.sends) + len(sends) - sum(device.came.values())
        device.most_alone = max(device.most_alone, on_the_way)
        return sends  # type: ignore[return-value]  # the same list

    run.carousel.take = take  # type: ignore[method-assign,assignment]  # looks on
    run.run()
    assert (run.broadcasts, run.alone) == (0, COUNT)
    assert device.most_alone <= 5


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_pattern_of_loss_ends_complete_and_costs_what_was_lost(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    losses = [
        data.draw(st.dictionaries(st.integers(0, COUNT - 1), st.integers(1, 3), max_size=COUNT)) for _ in range(size)
    ]
    held = [data.draw(st.integers(0, ALL)) for _ in range(size)]
    joins = [data.draw(st.floats(0, 3)) for _ in range(size)]
    devices = [
        Device(
            f"d{number}",
            held[number] | 1,
            joins_at=joins[number],
            loses=lambda index, before, lost=losses[number]: before < lost.get(index, 0),  # type: ignore[misc]  # bound now
        )
        for number in range(size)
    ]
    run = Fleet(devices, COUNT)
    run.run()
    lost = sum(sum(one.values()) for one in losses)
    wanted = sum((bits | 1).bit_count() for bits in held)
    assert len(run.sends) <= wanted + lost + LEAD, "nothing is sent that nobody lacked"


def test_what_many_lost_is_broadcast_again_and_what_few_lost_goes_alone() -> None:
    size = 100
    many = broadcast_from(size)
    devices = fleet(size)
    for device in devices[:many]:
        device.loses = lambda index, before: index == 7 and before == 0
    devices[0].loses = lambda index, before: index in (7, 20) and before == 0
    run = Fleet(devices, COUNT)
    run.run()
    assert run.broadcasts == COUNT + 1
    assert [(send.index, send.device_id) for _, send in run.sends if send.device_id] == [(20, "d0")]


def test_a_fifth_lost_everywhere_costs_a_few_passes() -> None:
    size = 120
    source = random.Random(5)
    devices = fleet(size)
    for device in devices:
        device.loses = lambda index, before: source.random() < 0.2
    run = Fleet(devices, COUNT)
    run.run()
    assert run.broadcasts <= 4 * COUNT
    assert len(run.sends) * 4 <= size * COUNT, "far less than one copy each"
    assert finished(devices) < 30


def test_one_that_joins_late_gets_what_is_ahead_with_the_others() -> None:
    devices = fleet(10, per_chunk_s=0.02)
    late = Device("late", ALL, per_chunk_s=0.02, joins_at=0.4)
    run = Fleet([*devices, late], COUNT)
    run.run()
    assert run.broadcasts == COUNT
    assert 0 < run.alone < COUNT
    assert finished(devices) < 3


def test_the_pass_runs_as_fast_as_the_slowest_quartile() -> None:
    count = 300
    quick = [Device(f"q{number}", (1 << count) - 1, per_chunk_s=0.001) for number in range(12)]
    slow = [Device(f"s{number}", (1 << count) - 1, per_chunk_s=0.03) for number in range(8)]
    run = Fleet([*quick, *slow], count)
    run.run()
    assert run.broadcasts == count, "the slow quartile lost nothing"
    assert finished(slow) == pytest.approx(count * 0.03, rel=0.25)
    assert finished(quick) > finished(slow) - 2 * LEAD * 0.03


def test_fewer_slow_ones_than_a_quarter_hold_nobody_up_and_are_repaired() -> None:
    count = 300
    quick = [Device(f"q{number}", (1 << count) - 1, per_chunk_s=0.001) for number in range(18)]
    slow = [Device(f"s{number}", (1 << count) - 1, per_chunk_s=0.2) for number in range(2)]
    run = Fleet([*quick, *slow], count)
    run.run()
    assert finished(quick) < 2
    assert finished(slow) == pytest.approx(count * 0.2, rel=0.6)


@pytest.mark.parametrize("mute", [True, False], ids=["hung", "asks for ever"])
@pytest.mark.parametrize("stalled", [1, 4, 30])
def test_stalled_devices_delay_the_healthy_by_a_bounded_time(stalled: int, mute: bool) -> None:
    count = 200
    healthy = [Device(f"h{number}", (1 << count) - 1, per_chunk_s=0.005) for number in range(36)]
    alone = Fleet(healthy, count)
    alone.run()
    undisturbed = finished(healthy)

    healthy = [Device(f"h{number}", (1 << count) - 1, per_chunk_s=0.005) for number in range(36)]
    dead = [Device(f"x{number}", (1 << count) - 1, deaf=lambda now: True, mute=mute) for number in range(stalled)]
    run = Fleet([*healthy, *dead], count)
    run.run(until=lambda: all(one.done_at is not None for one in healthy))
    quarter = stalled * 4 >= stalled + len(healthy)
    assert finished(healthy) <= undisturbed + 0.3 + (STALL_S if quarter else 0)
    assert run.broadcasts == count


def test_devices_that_ask_and_never_take_anything_cost_little() -> None:
    dead = [Device(f"x{number}", ALL, deaf=lambda now: True) for number in range(20)]
    run = Fleet(dead, COUNT)
    with pytest.raises(AssertionError, match="not finished"):
        run.run(limit_s=300)
    assert len(run.sends) < 20 * COUNT


def test_one_that_was_deaf_for_a_while_is_repaired_at_the_end() -> None:
    devices = fleet(12, per_chunk_s=0.01)
    devices[3].deaf = lambda now: 0.3 < now < 20
    run = Fleet(devices, COUNT)
    run.run()
    others = [device for device in devices if device is not devices[3]]
    assert finished(others) < 2 + SETTLE_S
    assert 20 < finished(devices) < 90
    assert run.broadcasts == COUNT
