"""Windows against a naive reference, and what time does to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.errors import InputError
from skerry_agent.stream.windowing import Floats, Windower


def numbered(count: int, channels: int = 2, first: int = 0) -> Floats:
    """Sample i holds i * 10, i * 10 + 1, ..."""
    return (np.arange(first, first + count)[:, None] * 10 + np.arange(channels)).astype(np.float32)


def naive(samples: Floats, length: int, hop: int) -> list[Floats]:
    return [samples[start : start + length].T for start in range(0, len(samples) - length + 1, hop)]


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 3),
    length=st.integers(1, 9),
    hop=st.integers(1, 12),
    pushes=st.lists(st.integers(0, 25), max_size=12),
)
def test_any_cut_of_the_stream_gives_the_windows_of_the_whole(
    channels: int, length: int, hop: int, pushes: list[int]
) -> None:
    samples = numbered(sum(pushes), channels)
    windower = Windower(channels, length, hop=hop, period_ms=20)
    found, taken = [], 0
    for count in pushes:
        # The last sample of every window has the time that its number says.
        for window in windower.push(samples[taken : taken + count], at_ms=taken * 20.0):
            found.append(window.x)
            assert window.at_ms == window.x[0, -1] / 10 * 20
        taken += count
        assert windower.held < length
    expected = naive(samples, length, hop)
    assert len(found) == len(expected)
    for x, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, wanted)
        assert x.flags.c_contiguous
        assert x.dtype == np.float32
    assert windower.gaps == 0


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 6),
    hop=st.integers(1, 8),
    parts=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_no_window_spans_a_gap(length: int, hop: int, parts: list[list[int]]) -> None:
    windower = Windower(1, length, hop=hop, period_ms=10, gap_ms=15)
    found: list[Floats] = []
    expected: list[Floats] = []
    first, at_ms = 0, 1000.0
    for part in parts:
        expected += naive(numbered(sum(part), 1, first), length, hop)
        for count in part:
            found += [window.x for window in windower.push(numbered(count, 1, first), at_ms)]
            first, at_ms = first + count, at_ms + count * 10
        at_ms += 16  # what comes next is 16 ms late
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]
    assert windower.gaps == len(parts) - 1


@pytest.mark.parametrize(
    ("at_ms", "gap"),
    [
        pytest.param(1030.0, False, id="as-expected"),
        pytest.param(1055.0, False, id="late-within-the-limit"),
        pytest.param(1056.0, True, id="late"),
        pytest.param(1004.0, True, id="clock-went-back"),
        pytest.param(None, False, id="without-a-time"),
    ],
)
def test_time_makes_a_gap(at_ms: float | None, gap: bool) -> None:
    windower = Windower(2, 4, hop=4, period_ms=10, gap_ms=25)
    assert windower.push(numbered(3), at_ms=1000.0) == []
    windows = windower.push(numbered(1, first=3), at_ms=at_ms)
    assert (len(windows), windower.gaps) == ((0, 1) if gap else (1, 0))
    assert windower.held == (1 if gap else 0)


def test_other_channels_are_refused_and_nothing_is_taken() -> None:
    windower = Windower(2, 3, hop=3)
    windower.push(numbered(2))
    with pytest.raises(InputError, match=r"samples: expected \[n, 2\], got \[5, 3\]"):
        windower.push(numbered(5, 3))
    assert windower.held == 2
    (window,) = windower.push(numbered(1, first=2))
    assert window.x.tolist() == [[0, 10, 20], [1, 11, 21]]
    assert window.at_ms is None


def test_a_window_is_nobody_elses_memory() -> None:
    samples = numbered(4, 1)
    windower = Windower(1, 4, hop=1)
    (window,) = windower.push(samples)
    samples[:] = -1
    windower.push(numbered(1, 1))
    assert window.x.tolist() == [[0, 10, 20, 30]]


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_windows_have_a_size(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="windows of"):
        Windower(bad[0], bad[1], hop=bad[2])
