"""Which values a sparse update keeps, and the forms of their places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.errors import WireError
from skerry_contract.update_sparse import (
    Places,
    kept,
    low_bits,
    most_steps,
    random_places,
    read_gaps,
    read_mask,
    top_places,
    write_gaps,
    write_mask,
)


@pytest.mark.parametrize(
    ("values", "density", "count"), [(0, 0.5, 0), (1, 1e-6, 1), (1000, 0.01, 10), (1000, 1.0, 1000), (7, 0.9, 6)]
)
def test_a_density_keeps_at_least_one(values: int, density: float, count: int) -> None:
    assert kept(values, density) == count


def test_the_largest_magnitudes_are_kept_and_of_equal_ones_the_first() -> None:
    x = np.array([0, -3, 1, 2, -2, 2], dtype="f4")
    assert [top_places(x, k).tolist() for k in range(4)] == [[], [1], [1, 3], [1, 3, 4]]
    assert top_places(np.zeros(5, dtype="f4"), 2).tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["heavy tails", "ordered", "sample sees nothing", "ties"])
def test_a_sampled_threshold_gives_the_same_places(kind: str) -> None:
    n = 300_000
    x = np.random.default_rng(3).standard_t(2, size=n).astype("f4")
    if kind == "ordered":
        x.sort()
    elif kind == "sample sees nothing":
        x[:: n // (1 << 16)] = 0
    elif kind == "ties":
        x = np.round(x)
    for k in (1, 300, 20_000):
        order = np.argsort(-np.abs(x), kind="stable")[:k]
        assert top_places(x, k).tolist() == sorted(order.tolist())


def test_random_places_come_one_from_each_stratum_with_equal_chances() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        places = random_places(seed, 10, 3)
        # Strata of 3, 3 and 4.
        assert [int(np.searchsorted([3, 6, 10], place, side="right")) for place in places] == [0, 1, 2]
        counts[places] += 1
    chances = np.repeat([1 / 3, 1 / 3, 1 / 4], [3, 3, 4])
    assert (np.abs(counts - 2000 * chances) < 5 * np.sqrt(2000 * chances)).all()


def test_random_places_follow_from_the_seed_for_ever() -> None:
    # The sender and the reader draw them on machines of their own: another NumPy must not change them.
    assert random_places(12345, 1000, 5).tolist() == [38, 261, 498, 714, 989]
    assert random_places(1, 200_000, 200_000).tolist() == list(range(200_000))


@st.composite
def places_of(draw: st.DrawFn) -> tuple[Places, int]:
    values = draw(st.integers(1, 3000) | st.integers(1, 1 << 30))
    places = draw(st.sets(st.integers(0, values - 1), min_size=1, max_size=60))
    return np.array(sorted(places), dtype=np.int64), values


@given(places_of())
@settings(max_examples=80, deadline=None, database=None)
def test_places_come_back(case: tuple[Places, int]) -> None:
    places, values = case
    k = len(places)
    steps, packed = write_gaps(places, low_bits(values, k))
    assert k <= len(steps) <= most_steps(values, k)
    assert read_gaps(steps, packed, values=values, k=k).tolist() == places.tolist()
    if values <= 3000:
        mask = read_mask(write_mask(places, values), values=values, k=k)
        assert np.flatnonzero(mask).tolist() == places.tolist()


def test_gaps_by_hand() -> None:
    # Mean gaps of 6,400 have seven low bits. 299 is 2 * 128 + 43; the gap after it, 32,700, is 255 * 128 + 60.
    assert low_bits(12_800, 2) == 7
    steps, packed = write_gaps(np.array([299, 299 + 32_701]), 7)
    assert steps.tolist() == [2, 255, 0]
    assert int.from_bytes(packed.tobytes(), "little") == 43 | 60 << 7


@pytest.mark.parametrize(
    ("steps", "packed", "k"),
    [
        ([], [], 1),
        ([0], [], 2),
        ([0, 0, 0], [], 2),
        ([0, 255], [], 1),
        ([255, 255, 255], [], 1),
        ([100, 0], [], 2),
        ([99, 0], [], 2),
        ([0, 0], [1], 2),
    ],
)
def test_gaps_that_are_not_k_places_are_refused(steps: list[int], packed: list[int], k: int) -> None:
    with pytest.raises(WireError, match=r"update\.places"):
        read_gaps(np.array(steps, dtype=np.uint8), np.array(packed, dtype=np.uint8), values=100, k=k)


@pytest.mark.parametrize(("bits", "k"), [([0b11, 0], 1), ([0b11, 0], 3), ([1, 0b100], 1), ([1, 0b100], 2)])
def test_masks_that_are_not_k_places_are_refused(bits: list[int], k: int) -> None:
    with pytest.raises(WireError, match=r"update\.places"):
        read_mask(np.array(bits, dtype=np.uint8), values=10, k=k)
