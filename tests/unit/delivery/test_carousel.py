"""Who gets which chunk next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_server.delivery.carousel import DEVICES, FILES, GATHER_S, BusyError, Carousel, FileKey, Send

A = FileKey("a" * 64, 1024)
B = FileKey("b" * 64, 1024)


def drained(carousel: Carousel, now: float = 100.0) -> list[Send]:
    sends = []
    while taken := carousel.take(3, now):
        sends.extend(taken)
    assert carousel.idle
    return sends


def test_nothing_is_sent_while_requests_are_gathered() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", [0], 10.0)
    assert carousel.take(8, 10.0 + GATHER_S - 0.001) == []
    carousel.want(A, "d2", [0], 10.1)
    assert carousel.take(8, 10.0 + GATHER_S) == [Send(A, 0, None)]
    assert carousel.idle


def test_a_single_device_is_served_alone() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", [2, 0], 0.0)
    assert drained(carousel) == [Send(A, 0, "d1"), Send(A, 2, "d1")]


def test_what_two_devices_lack_is_broadcast_and_the_rest_goes_alone() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", [0, 1, 3], 0.0)
    carousel.want(A, "d2", [1, 2, 3], 0.0)
    carousel.want(A, "d3", [3], 0.0)
    assert drained(carousel) == [Send(A, 0, "d1"), Send(A, 1, None), Send(A, 2, "d2"), Send(A, 3, None)]


def test_one_that_joins_in_the_middle_gets_what_is_ahead_with_the_others() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", range(6), 0.0)
    carousel.want(A, "d2", range(6), 0.0)
    assert carousel.take(3, 1.0) == [Send(A, 0, None), Send(A, 1, None), Send(A, 2, None)]
    carousel.want(A, "d3", range(6), 1.0)
    rest = drained(carousel)
    assert [(send.index, send.device_id) for send in rest] == [
        (3, None),
        (4, None),
        (5, None),
        (0, "d3"),
        (1, "d3"),
        (2, "d3"),
    ]


def test_files_take_turns() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", range(3), 0.0)
    carousel.want(B, "d2", range(2), 0.0)
    assert [(send.file, send.index) for send in drained(carousel)] == [(A, 0), (B, 0), (A, 1), (B, 1), (A, 2)]


def test_a_newer_request_replaces_the_older_one() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", [0, 1, 2], 0.0)
    carousel.want(A, "d1", [2], 0.0)
    assert drained(carousel) == [Send(A, 2, "d1")]
    carousel.want(A, "d1", [1], 0.0)
    carousel.want(A, "d1", [], 0.0)
    assert carousel.idle


def test_dropping_a_file_names_who_waited() -> None:
    carousel = Carousel()
    carousel.want(A, "d1", [0], 0.0)
    carousel.want(A, "d2", [1], 0.0)
    carousel.want(B, "d3", [0], 0.0)
    assert carousel.drop(A) == ["d1", "d2"]
    assert carousel.drop(A) == []
    assert drained(carousel) == [Send(B, 0, "d3")]


def test_files_and_devices_are_bounded() -> None:
    carousel = Carousel()
    for number in range(DEVICES):
        carousel.want(A, f"d{number}", [0], 0.0)
    with pytest.raises(BusyError, match="devices"):
        carousel.want(A, "one-more", [0], 0.0)
    carousel.want(A, "d0", [0, 1], 0.0)
    assert carousel.devices == DEVICES
    for number in range(FILES - 1):
        carousel.want(FileKey(f"{number:064x}", 1), "d", [0], 0.0)
    with pytest.raises(BusyError, match="files"):
        carousel.want(B, "d", [0], 0.0)
    assert carousel.devices == DEVICES + FILES - 1


@given(
    st.dictionaries(
        st.sampled_from(["d1", "d2", "d3", "d4"]), st.sets(st.integers(0, 70), min_size=1), min_size=1, max_size=4
    ),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_everybody_gets_exactly_what_they_lack(wants: dict[str, set[int]], count: int) -> None:
    carousel = Carousel()
    for device, missing in wants.items():
        carousel.want(A, device, missing, 0.0)
    got: dict[str, list[int]] = {device: [] for device in wants}
    sends = 0
    while taken := carousel.take(count, 1.0):
        assert len(taken) <= count
        for send in taken:
            sends += 1
            for device, missing in wants.items():
                if send.device_id == device or (send.device_id is None and send.index in missing):
                    got[device].append(send.index)
    assert {device: sorted(indices) for device, indices in got.items()} == {
        device: sorted(missing) for device, missing in wants.items()
    }
    assert sends == len(set().union(*wants.values())), "no chunk is sent twice"
