"""Stochastic rounding to 16, 8 and 4 bits: unbiased, with a scale for every block of 4096 values.

A value x of a block with the largest magnitude m becomes floor(x / s + u), where s is m / levels and u is uniform on
[0, 1) in steps of 2 ** -16: its expectation is x / s to that step (QSGD, arXiv:1610.02132). The work is done in pieces
that stay in the processor's cache; every step is one NumPy loop over a piece.

Invariants: codes stay within ±levels; a scale is finite, and so is scale * levels; a block whose largest magnitude is
below :data:`SMALLEST` becomes zeros, and its values are what is lost. Equal random numbers give equal codes everywhere.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from skerry_contract.update_layout import BLOCK, Float32

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
UInt16 = npt.NDArray[np.uint16]

#: Largest code of each quantised wire.
LEVELS = {"int8": 127, "int4": 7}
#: A block without a magnitude above this becomes zeros, since 2 ** 16 / scale would overflow; what is above the other
#: counts as infinite.
SMALLEST, LARGEST = 2.0**-104, 2.0**127
#: Values that are worked on at a time: they, their codes and their random numbers fit in a second-level cache.
PIECE = 8 * BLOCK
#: Scales are this much larger than m / levels, so that no rounding on the way carries a code beyond its levels.
MARGIN = 1 + 2.0**-20


class Random16:
    """Uniform 16-bit numbers from a seed: the raw output of SFC64, which NumPy keeps stable over its versions."""

    def __init__(self, seed: int) -> None:
        """``seed`` is not negative."""
        self._generator = np.random.SFC64(seed)

    def take(self, count: int) -> UInt16:
        """uint16 [count]; what is left of the last 64-bit word is dropped."""
        words: npt.NDArray[np.uint64] = self._generator.random_raw(-(-count // 4))
        return words.astype("<u8", copy=False).view("<u2")[:count]


class Kernels(Protocol):
    """The inner loops. Another implementation gives the same bits for the same random numbers."""

    def quantise(
        self,
        x: Float32,
        carried: Float32 | None,
        levels: int,
        random: Random16,
        codes: Int8,
        scales: Float32,
        lost: Float32 | None,
    ) -> None:
        """Write the codes of one tensor.

        Args:
            x: float32 [n], C order; not changed.
            carried: float32 [n] that is added to ``x`` first, or None.
            levels: Largest code.
            random: Gives the numbers of each :data:`PIECE` in turn.
            codes: int8 [n], written.
            scales: float32 [ceil(n / BLOCK)], written; not finite for a block that is not.
            lost: float32 [n], written: x + carried - code * scale; None if nobody wants to know.
        """
        ...

    def dequantise(self, codes: Int8, scales: Float32, out: Float32) -> None:
        """Write code * scale into ``out``; shapes as above."""
        ...


class NumpyKernels:
    """See :class:`Kernels`."""

    def quantise(
        self,
        x: Float32,
        carried: Float32 | None,
        levels: int,
        random: Random16,
        codes: Int8,
        scales: Float32,
        lost: Float32 | None,
    ) -> None:
        """See :class:`Kernels`."""
        sums = np.empty(min(PIECE, len(x)), dtype=np.float32)
        steps = np.empty_like(sums)
        for start in range(0, len(x), PIECE):
            at = slice(start, start + PIECE)
            values = x[at]
            count = len(values)
            if carried is not None:
                values = np.add(values, carried[at], out=sums[:count])
            own = block_scales(values, levels)
            scales[start // BLOCK : start // BLOCK + len(own)] = own
            y = steps[:count]
            # What is not finite gives codes of no meaning beside a scale that says so.
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                factors = np.float32(65536) / own
                factors[own == 0] = 0
                _by_block(values, factors, y)
                np.add(y, random.take(count), out=y)
                np.multiply(y, np.float32(2.0**-16), out=y)
                np.floor(y, out=y)
                np.copyto(codes[at], y, casting="unsafe")
                if lost is not None:
                    _by_block(y, own, y)
                    np.subtract(values, y, out=lost[at])

    def dequantise(self, codes: Int8, scales: Float32, out: Float32) -> None:
        """See :class:`Kernels`."""
        for start in range(0, len(codes), PIECE):
            piece = out[start : start + PIECE]
            np.copyto(piece, codes[start : start + PIECE])
            _by_block(piece, scales[start // BLOCK : -(-(start + len(piece)) // BLOCK)], piece)


def _by_block(values: Float32, factors: Float32, out: Float32) -> None:
    """``out`` = ``values`` times the factor of their block."""
    full = len(values) // BLOCK
    cut = full * BLOCK
    np.multiply(values[:cut].reshape(full, BLOCK), factors[:full, None], out=out[:cut].reshape(full, BLOCK))
    if len(values) > cut:
        np.multiply(values[cut:], factors[full], out=out[cut:])


def block_scales(values: Float32, levels: int) -> Float32:
    """The scale of each block: 0 for one of zeros, infinite or NaN for one that is not finite.

    Args:
        values: float32 [n].
        levels: Largest code.

    Returns:
        float32 [ceil(n / BLOCK)].
    """
    full = len(values) // BLOCK
    rows, rest = values[: full * BLOCK].reshape(full, BLOCK), values[full * BLOCK :]
    largest = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))
    if len(rest):
        largest = np.append(largest, np.maximum(rest.max(), -rest.min()))
    scales: Float32 = largest * np.float32(MARGIN / levels)
    scales[largest < SMALLEST] = 0
    scales[largest > LARGEST] = np.inf
    return scales


def largest_scale(levels: int) -> float:
    """What no scale of a finite block is above."""
    return float(np.float32(LARGEST) * np.float32(MARGIN / levels))


def pack_nibbles(codes: Int8) -> UInt8:
    """Two codes of -7 to 7 in a byte, the first in the low half; uint8 [ceil(n / 2)]; a last half is 8, code 0."""
    unsigned = np.full(len(codes) + len(codes) % 2, 8, dtype=np.uint8)
    np.add(codes, 8, out=unsigned[: len(codes)], casting="unsafe")
    pairs = unsigned.view("<u2")
    packed: UInt8 = (pairs | (pairs >> np.uint16(4))).astype(np.uint8)
    return packed


def unpack_nibbles(packed: UInt8, count: int) -> Int8:
    """What :func:`pack_nibbles` packed; a half of 0 becomes the code -8, which nobody writes."""
    pairs = packed.astype("<u2")
    pairs |= pairs << np.uint16(4)
    pairs &= np.uint16(0x0F0F)
    codes = pairs.view(np.int8)
    codes -= np.int8(8)
    return codes[:count]


def round_bfloat16(values: Float32, random: Random16) -> tuple[UInt8, UInt8]:
    """Upper halves of float32 values, rounded up with the probability that the lower half says.

    Args:
        values: float32 [n], magnitudes of at most 2 ** 127; replaced by what is lost.
        random: See :class:`Kernels`.

    Returns:
        High and low byte of each bfloat16, uint8 [n] each.
    """
    high, low = np.empty(len(values), dtype=np.uint8), np.empty(len(values), dtype=np.uint8)
    for start in range(0, len(values), PIECE):
        at = slice(start, start + PIECE)
        piece = values[at]
        bits = piece.view(np.uint32) + random.take(len(piece))
        bits &= np.uint32(0xFFFF0000)
        np.subtract(piece, bits.view(np.float32), out=piece)
        bits >>= np.uint32(16)
        np.copyto(low[at], bits, casting="unsafe")
        bits >>= np.uint32(8)
        np.copyto(high[at], bits, casting="unsafe")
    return high, low


def join_bfloat16(high: UInt8, low: UInt8, out: Float32) -> None:
    """Write the float32 values of bfloat16 ones; infinity and NaN stay what they are."""
    for start in range(0, len(out), PIECE):
        at = slice(start, start + PIECE)
        bits = out[at].view(np.uint32)
        np.copyto(bits, high[at])
        bits <<= np.uint32(8)
        bits |= low[at]
        bits <<= np.uint32(16)
