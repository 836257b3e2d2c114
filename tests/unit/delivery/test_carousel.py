"""Who gets which chunk next, step by step; whole deliveries are in test_fleet.py."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from skerry_contract.sampling import EVERY_RANK
from skerry_server.delivery.carousel import (
    ALONE,
    ALONE_S,
    DEVICES,
    FILES,
    FORGET_S,
    GATHER_MOST_S,
    GATHER_S,
    LISTENING_S,
    SETTLE_S,
    BusyError,
    Carousel,
    FileKey,
    Request,
    Send,
)
from skerry_server.delivery.pacing import LEAD, REPORT_EVERY, SAMPLE, STALL_S, Window, broadcast_from, quartile_lead
from skerry_server.delivery.receiver import LOST_S

A = FileKey("a" * 64, 1024)
B = FileKey("b" * 64, 1024)
COUNT = 100


class Bench:
    def __init__(self) -> None:
        self.carousel = Carousel()
        self.now = 100.0

    def want(self, device: str, missing: Iterable[int], *, file: FileKey = A, quiet: float = 0.0) -> None:
        bits = sum(1 << index for index in missing)
        self.carousel.want(file, Request(device, bits, COUNT, quiet_s=quiet), self.now)

    def take(self, count: int = 500) -> list[tuple[int, str | None]]:
        return [(send.index, send.device_id) for send in self.carousel.take(count, self.now)]

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_the_server_gathers_until_no_more_devices_come_but_not_for_ever() -> None:
    bench = Bench()
    bench.want("d0", [0])
    assert bench.take() == []
    for number in range(1, 8):
        bench.wait(GATHER_S * 0.8)
        bench.want(f"d{number}", [0])
        taken = bench.take()
        assert taken == ([] if number * GATHER_S * 0.8 < GATHER_MOST_S else [(0, None)])
    other = Bench()
    other.want("d0", [0])
    other.wait(GATHER_S)
    assert other.take() == [(0, "d0")]


def test_a_message_names_who_reports() -> None:
    bench = Bench()
    bench.want("d1", [3])
    bench.want("d2", [3])
    bench.wait(GATHER_S)
    assert bench.carousel.take(1, bench.now) == [Send(A, 3, None, EVERY_RANK, REPORT_EVERY)]
    for number in range(SAMPLE * 3):
        bench.want(f"e{number}", [7])
    bench.wait(SETTLE_S)
    (send,) = bench.carousel.take(1, bench.now)
    assert send.index == 7
    assert 0 < send.report_below < EVERY_RANK


def test_what_two_lack_is_broadcast_and_the_rest_goes_alone() -> None:
    bench = Bench()
    bench.want("d1", [0, 1, 3])
    bench.want("d2", [1, 2, 3])
    bench.wait(GATHER_S)
    assert sorted(bench.take(), key=str) == sorted([(0, "d1"), (1, None), (2, "d2"), (3, None)], key=str)


def test_what_is_on_its_way_is_not_sent_again() -> None:
    bench = Bench()
    for device in ("d1", "d2"):
        bench.want(device, range(10))
    bench.wait(GATHER_S)
    assert len(bench.take()) == 10
    bench.want("d1", range(3, 10))  # three came so far
    bench.want("late", range(10))  # listened before it asked
    bench.wait(SETTLE_S)
    assert bench.take() == []


def test_a_late_one_gets_what_was_broadcast_long_before_it_came() -> None:
    bench = Bench()
    for device in ("d1", "d2"):
        bench.want(device, range(4))
    bench.wait(GATHER_S)
    bench.take()
    for device in ("d1", "d2"):
        bench.want(device, [])
    bench.want("d3", [50])
    bench.wait(LISTENING_S + SETTLE_S)
    bench.want("late", range(2))
    assert sorted(bench.take(), key=str) == [(0, "late"), (1, "late"), (50, "d3")]


def test_whoever_has_a_later_chunk_has_lost_the_earlier_ones() -> None:
    bench = Bench()
    for device in ("d1", "d2"):
        bench.want(device, range(10))
    bench.wait(GATHER_S)
    bench.take()
    bench.want("d1", [2, 4, 8, 9])  # 7 came: 2 and 4 are lost, 8 and 9 may come
    bench.wait(SETTLE_S)
    assert bench.take() == [(2, "d1"), (4, "d1")]
    bench.want("d1", [2])  # 4 was sent after 2
    assert bench.take() == [(2, "d1")]
    bench.want("d1", [])
    assert bench.carousel.devices == 1


def test_whoever_is_quiet_has_lost_what_was_sent_before() -> None:
    bench = Bench()
    for device in ("d1", "d2"):
        bench.want(device, range(3))
    bench.wait(GATHER_S)
    bench.take()
    bench.wait(LOST_S / 2)
    bench.want("d1", range(3), quiet=LOST_S / 2)
    bench.wait(LOST_S)
    bench.want("d2", range(3), quiet=LOST_S)
    bench.wait(SETTLE_S)
    assert {device for _, device in bench.take(2)} == {"d2"}
    bench.want("d1", range(3), quiet=LOST_S * 3)
    assert set(bench.take(3)) == {(2, None), (0, "d1"), (1, "d1")}, "both lack the last one"


def test_a_window_is_honoured_and_opens_with_what_is_confirmed() -> None:
    bench = Bench()
    bench.want("d1", range(30))
    bench.wait(GATHER_S)
    assert [index for index, _ in bench.take()] == [0, 1]
    bench.want("d1", range(1, 30))
    assert [index for index, _ in bench.take()] == [2, 3, 4]
    bench.want("d1", range(5, 30))
    assert [index for index, _ in bench.take()] == list(range(5, 13)), "the request says 8"
    bench.want("d1", range(5, 30), quiet=LOST_S)
    assert bench.take() == [], "they may still come"
    bench.wait(LOST_S)
    bench.want("d1", range(5, 30), quiet=LOST_S)
    assert [index for index, _ in bench.take()] == [5, 6, 7, 8], "half the window after a loss"


def test_files_take_turns() -> None:
    bench = Bench()
    for device in ("d1", "d2"):
        bench.want(device, range(3))
        bench.want(device, range(2), file=B)
    bench.wait(GATHER_S)
    sends = bench.carousel.take(9, bench.now)
    assert [(send.file, send.index) for send in sends] == [(A, 0), (B, 0), (A, 1), (B, 1), (A, 2)]


def test_the_pass_waits_for_the_slowest_quartile_and_gives_up_who_does_not_move() -> None:
    bench = Bench()
    for device in ("d1", "d2", "d3", "d4"):
        bench.want(device, range(COUNT))
    bench.wait(GATHER_S)
    assert len(bench.take()) == LEAD
    for device in ("d1", "d2", "d3"):
        bench.want(device, range(10, COUNT))
    assert len(bench.take()) == 10, "d4 is the slowest quartile: it holds nobody up"
    bench.want("d1", range(LEAD + 10, COUNT))
    bench.want("d2", range(LEAD + 10, COUNT))
    assert bench.take() == [], "a second one does"
    bench.wait(STALL_S - 0.001)
    assert bench.take() == []
    bench.wait(0.001)
    bench.take(1)
    assert len(bench.take()) > 0
    bench.want("d4", range(COUNT), quiet=5.0)
    assert (0, "d4") in bench.take(), "what stood still is sent one chunk, alone"


def test_one_that_says_nothing_for_long_is_forgotten() -> None:
    bench = Bench()
    bench.want("d1", [0])
    bench.wait(FORGET_S + 0.1)
    bench.take()
    assert bench.carousel.idle


def test_a_device_that_lacks_nothing_is_let_go() -> None:
    bench = Bench()
    bench.want("d1", [])
    assert bench.carousel.idle
    bench.want("d1", [4])
    bench.want("d1", [])
    assert bench.carousel.idle


def test_dropping_a_file_names_who_waited() -> None:
    bench = Bench()
    bench.want("d1", [0])
    bench.want("d2", [1])
    bench.want("d3", [0], file=B)
    assert bench.carousel.drop(A) == ["d1", "d2"]
    assert bench.carousel.drop(A) == []
    bench.wait(GATHER_S)
    assert bench.take() == [(0, "d3")]


def test_files_and_devices_are_bounded() -> None:
    bench = Bench()
    for number in range(DEVICES):
        bench.want(f"d{number}", [0])
    with pytest.raises(BusyError, match="devices"):
        bench.want("one-more", [0])
    bench.want("d0", [0, 1])
    assert bench.carousel.devices == DEVICES
    for number in range(FILES - 1):
        bench.want("d", [0], file=FileKey(f"{number:064x}", 1))
    with pytest.raises(BusyError, match="files"):
        bench.want("d", [0], file=B)
    assert bench.carousel.devices == DEVICES + FILES - 1


@pytest.mark.parametrize(
    ("audience", "least"), [(0, 2), (1, 2), (33, 2), (34, 2), (35, 3), (100, 4), (500, 17), (10_000, 304)]
)
def test_a_broadcast_must_be_cheaper_than_one_message_each(audience: int, least: int) -> None:
    # 32 + audience <= lacking * 33
    assert broadcast_from(audience) == least


@pytest.mark.parametrize(
    ("leads", "expected"), [([], 0), ([5], 5), ([5, 1], 5), ([1, 2, 3, 9], 3), ([9, 9, 1, 1, 1, 1, 1, 1], 1)]
)
def test_the_boundary_of_the_slowest_quartile(leads: list[int], expected: int) -> None:
    assert quartile_lead(leads) == expected


def test_a_window_never_leaves_its_bounds() -> None:
    window = Window(1)
    window.allow(0)
    assert window.size == 1
    window.allow(10_000)
    for _ in range(20):
        window.confirmed()
    assert window.size == 64
    for _ in range(20):
        window.lost()
    assert (window.size, window.report_every) == (1, 1)


def test_chunks_for_single_devices_are_bounded_over_all_devices() -> None:
    bench = Bench()
    for number in range(100):
        file = FileKey(f"{number:064x}", 1024)
        bench.want(f"d{number}", range(10), file=file)
    bench.wait(GATHER_S)
    assert len(bench.take()) == ALONE // 2, "nobody has confirmed anything yet"
    for number in range(20):
        bench.want(f"d{number}", range(2, 10), file=FileKey(f"{number:064x}", 1024))
    taken = [device for _, device in bench.take()]
    confirmed = {f"d{number}" for number in range(20)}
    assert sum(device in confirmed for device in taken) == 20 * 4, "those that did get their whole windows"
    assert ALONE // 2 < 96 - 20 + len(taken) <= ALONE
    assert bench.take() == []
    bench.wait(ALONE_S)
    assert len(bench.take()) > 0, "those that never speak do not hold the others up for ever"


def test_nothing_is_lost_in_a_hurry_while_chunks_take_long() -> None:
    bench = Bench()
    for device in ("d1", "d2"):
        bench.want(device, range(20))
    bench.wait(GATHER_S)
    bench.take()
    bench.wait(3.0)
    bench.want("d1", range(1, 20))  # a chunk takes three seconds
    bench.want("d2", range(20), quiet=3.0)
    bench.wait(2.9)
    bench.want("d2", range(20), quiet=5.9)
    assert bench.take() == [], "less than twice that"
    bench.wait(0.2)
    bench.want("d2", range(20), quiet=6.1)
    assert bench.take(1) == [(0, "d2")]
