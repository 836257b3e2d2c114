"""Stochastic rounding: by hand, without bias in any block, and what that test would find."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_contract.update_layout import BLOCK, Float32
from skerry_contract.update_quantise import (
    LEVELS,
    MARGIN,
    PIECE,
    Int8,
    NumpyKernels,
    Random16,
    UInt16,
    block_scales,
    join_bfloat16,
    largest_scale,
    pack_nibbles,
    round_bfloat16,
    unpack_nibbles,
)

KERNELS = NumpyKernels()
SEEDS = 300
#: Standard errors beyond which a mean is called biased: once in 15 million means of a fair generator.
BOUND = 5.4


class Constant(Random16):
    """The same number for every value."""

    def __init__(self, number: int) -> None:
        super().__init__(0)
        self._number = number

    def take(self, count: int) -> UInt16:
        return np.full(count, self._number, dtype="<u2")


class NoTopBit(Random16):
    """What a signed 16-bit overflow leaves of the numbers."""

    def take(self, count: int) -> UInt16:
        return super().take(count) & np.uint16(0x7FFF)


class Repeated(Random16):
    """Each number for two values that follow each other."""

    def take(self, count: int) -> UInt16:
        return np.repeat(super().take(-(-count // 2)), 2)[:count]


def quantise(
    x: Float32, levels: int, random: Random16, carried: Float32 | None = None
) -> tuple[Int8, Float32, Float32]:
    codes, lost = np.empty(len(x), dtype=np.int8), np.empty(len(x), dtype=np.float32)
    scales = np.empty(-(-len(x) // BLOCK), dtype=np.float32)
    KERNELS.quantise(x, carried, levels, random, codes, scales, lost)
    return codes, scales, lost


def test_by_hand() -> None:
    # Steps of 1: 2.25 rounds up from u >= 0.75 on, -2.25 from u >= 0.25 on.
    x = np.array([7 * MARGIN, 2.25, -2.25, 0, -7 * MARGIN], dtype="f4")
    for number, expected in [
        (0, [6, 2, -3, 0, -7]),
        (1 << 14, [7, 2, -2, 0, -7]),
        ((3 << 14) + 1, [7, 3, -2, 0, -7]),
        (65535, [7, 3, -2, 0, -7]),
    ]:
        codes, scales, lost = quantise(x, 7, Constant(number))
        assert scales[0] == pytest.approx(MARGIN**2)
        assert codes.tolist()[1:] == expected[1:]
        assert codes[0] in (6, 7)
        np.testing.assert_allclose(lost, x - codes * scales[0], atol=1e-6)


def test_a_block_ends_with_its_tensor_and_zeros_stay() -> None:
    x = np.zeros(2 * BLOCK + 3, dtype="f4")
    x[:3], x[-1] = (1, 2, -4), 8
    codes, scales, lost = quantise(x, 127, Random16(1))
    np.testing.assert_allclose(scales, np.array([4, 0, 8]) / 127, rtol=1e-5)
    assert not codes[3:-1].any()
    assert not lost[BLOCK:-1].any()


@pytest.mark.parametrize(
    ("value", "scale"), [(0.0, 0.0), (2.0**-105, 0.0), (2.0**127, largest_scale(7)), (2.0**127.5, np.inf)]
)
def test_scales_at_the_ends(value: float, scale: float) -> None:
    for sign in (1, -1):
        assert block_scales(np.array([0, sign * value], dtype="f4"), 7).tolist() == [scale]
    assert np.isfinite(np.float32(largest_scale(7)) * np.float32(7))


def test_not_a_number_shows_in_the_scale() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones(BLOCK + 1, dtype="f4")
        x[7] = bad
        assert np.isfinite(quantise(x, 127, Random16(1))[1]).tolist() == [False, True]


@pytest.mark.parametrize("levels", LEVELS.values())
def test_the_extremes_stay_within_the_levels(levels: int) -> None:
    rng = np.random.default_rng(2)
    for number in (0, 1, 65534, 65535):
        for largest in rng.lognormal(sigma=20, size=200).astype("f4"):
            codes = quantise(np.array([largest, -largest], dtype="f4"), levels, Constant(number))[0]
            assert -levels <= codes.min() <= codes.max() <= levels


def means(levels: int, kind: type[Random16]) -> tuple[float, float, float]:
    """Largest errors of means over seeds, in standard errors: of a block, of a value, of products of neighbours."""
    x = np.random.default_rng(4).standard_t(4, size=2 * BLOCK + 500).astype("f4")
    scales = np.repeat(block_scales(x, levels).astype("f8"), BLOCK)[: len(x)]
    fraction = np.mod(x / scales, 1)
    variance = fraction * (1 - fraction)
    errors = np.empty((SEEDS, len(x)))
    for seed in range(SEEDS):
        codes, _, _ = quantise(x, levels, kind(seed))
        errors[seed] = codes - x / scales
    starts = np.arange(0, len(x), BLOCK)
    blocks = np.add.reduceat(errors.sum(axis=0), starts) / np.sqrt(SEEDS * np.add.reduceat(variance, starts))
    fair = (fraction > 0.05) & (fraction < 0.95)
    values = errors.sum(axis=0)[fair] / np.sqrt(SEEDS * variance[fair])
    pairs = (errors[:, ::2] * errors[:, 1::2]).sum() / np.sqrt(SEEDS * (variance[::2] * variance[1::2]).sum())
    return float(np.abs(blocks).max()), float(np.abs(values).max()), float(abs(pairs))


@pytest.mark.parametrize("levels", LEVELS.values())
def test_rounding_is_unbiased_in_every_block_and_value(levels: int) -> None:
    of_block, of_value, of_pairs = means(levels, Random16)
    assert of_block < BOUND
    assert of_value < BOUND
    assert of_pairs < BOUND


def test_the_test_finds_an_overflow_and_repeated_numbers() -> None:
    of_block, of_value, _ = means(127, NoTopBit)
    assert min(of_block, of_value) > 3 * BOUND
    _, _, of_pairs = means(127, Repeated)
    assert of_pairs > 3 * BOUND


def test_pieces_have_numbers_of_their_own() -> None:
    x = np.full(3 * PIECE + 10, 0.3, dtype="f4")
    x[::BLOCK] = 1
    codes = quantise(x, 7, Random16(9))[0]
    first, second = codes[1:BLOCK], codes[PIECE + 1 : PIECE + BLOCK]
    assert 0.4 < np.mean(first == second) < 0.95


def test_what_is_carried_is_rounded_with_the_values() -> None:
    rng = np.random.default_rng(6)
    x, carried = (rng.normal(size=PIECE + 100).astype("f4") for _ in range(2))
    expected = quantise(x + carried, 127, Random16(5))
    got = quantise(x, 127, Random16(5), carried)
    assert [part.tobytes() for part in (got[0], got[1], got[2])] == [
        part.tobytes() for part in (expected[0], expected[1], expected[2])
    ]
    out = np.empty_like(x)
    KERNELS.dequantise(expected[0], expected[1], out)
    np.testing.assert_array_equal(x + carried - out, expected[2])


def test_nibbles() -> None:
    codes = np.array([-7, 7, 0, 1, -1], dtype=np.int8)
    packed = pack_nibbles(codes)
    assert packed.tolist() == [0xF1, 0x98, 0x87]
    assert unpack_nibbles(packed, 5).tolist() == codes.tolist()
    assert unpack_nibbles(np.array([0x10], dtype=np.uint8), 2).tolist() == [-8, -7]


def test_bfloat16_by_hand_and_unbiased() -> None:
    # 1 + 2 ** -9 lies a quarter of the way from 1 to 1 + 2 ** -7.
    for number, expected in [(0, 1.0), (0xBFFF, 1.0), (0xC000, 1 + 2.0**-7)]:
        values = np.array([1 + 2.0**-9, -(1 + 2.0**-9)], dtype="f4")
        high, low = round_bfloat16(values, Constant(number))
        out = np.empty(2, dtype="f4")
        join_bfloat16(high, low, out)
        assert out.tolist() == [expected, -expected]
        assert values.tolist() == [1 + 2.0**-9 - expected, expected - 1 - 2.0**-9]
    x = np.random.default_rng(1).normal(size=3000).astype("f4")
    total, squares = np.zeros(3000), 0.0
    for seed in range(SEEDS):
        lost = x.copy()
        round_bfloat16(lost, Random16(seed))
        relative = lost / np.abs(x)
        total += relative
        squares += float(np.square(relative, dtype="f8").sum())
    assert abs(total.sum()) < BOUND * np.sqrt(squares)
    biased = np.abs(x)
    round_bfloat16(biased, Constant(0))
    assert SEEDS * float((biased / np.abs(x)).sum()) > 3 * BOUND * np.sqrt(squares)
