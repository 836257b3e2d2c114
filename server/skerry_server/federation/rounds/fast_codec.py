"""The inner loops of the update codec, compiled: the same bits as the contract's, a few times quicker.

The server decodes every update of a large model; devices do without. numba takes half a second to import and more to
compile, so that small models are left to NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from skerry_contract.update_layout import BLOCK, Float32
from skerry_contract.update_quantise import LARGEST, MARGIN, PIECE, SMALLEST, Int8, Kernels, NumpyKernels, Random16
from skerry_server.federation.aggregation.jit import available, compiled

#: Models with fewer values are left to NumPy.
WORTH = 1_000_000


def kernels_for(values: int) -> Kernels:
    """Kernels for a model of ``values`` values: compiled ones where numba is installed and they are worth it."""
    return CompiledKernels() if values >= WORTH and available() else NumpyKernels()


class CompiledKernels:
    """See :class:`~skerry_contract.update_quantise.Kernels`; needs numba."""

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
        """See :class:`~skerry_contract.update_quantise.Kernels`."""
        quantise = _loops()[0]
        nothing = np.empty(0, dtype=np.float32)
        sums = np.empty(BLOCK, dtype=np.float32)
        for start in range(0, len(x), PIECE):
            at = slice(start, start + PIECE)
            count = len(codes[at])
            quantise(
                x[at],
                nothing if carried is None else carried[at],
                carried is not None,
                np.float32(MARGIN / levels),
                random.take(count),
                codes[at],
                scales[start // BLOCK :],
                nothing if lost is None else lost[at],
                lost is not None,
                sums,
            )

    def dequantise(self, codes: Int8, scales: Float32, out: Float32) -> None:
        """See :class:`~skerry_contract.update_quantise.Kernels`."""
        _loops()[1](codes, scales, out)


@functools.cache
def _loops() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return compiled(_quantise), compiled(_dequantise)


def _quantise(
    x: Any,
    carried: Any,
    has_carried: bool,
    unit: Any,
    numbers: Any,
    codes: Any,
    scales: Any,
    lost: Any,
    has_lost: bool,
    sums: Any,
) -> None:
    for block in range((len(x) + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        count = min(BLOCK, len(x) - start)
        if has_carried:
            for i in range(count):
                sums[i] = x[start + i] + carried[start + i]
            values = sums[:count]
        else:
            values = x[start : start + count]
        # Magnitudes of floats are ordered as their bits are, NaN above all: integers have vector instructions for it.
        bits = values.view(np.uint32)
        top = np.uint32(0)
        for i in range(count):
            top = max(top, bits[i] & np.uint32(0x7FFFFFFF))
        largest = np.array([top], dtype=np.uint32).view(np.float32)[0]
        scale = np.float32(largest * unit)
        factor = np.float32(0)
        if largest < np.float32(SMALLEST):
            scale = np.float32(0)
        elif largest <= np.float32(LARGEST):
            factor = np.float32(65536) / scale
        else:
            scale = np.float32(np.inf)
            factor = np.float32(0)
        scales[block] = scale
        for i in range(count):
            y = values[i] * factor + np.float32(numbers[start + i])
            codes[start + i] = np.int8(np.floor(y * np.float32(2.0**-16)))
        if has_lost:
            for i in range(count):
                lost[start + i] = values[i] - np.float32(codes[start + i]) * scale


def _dequantise(codes: Any, scales: Any, out: Any) -> None:
    for block in range((len(codes) + BLOCK - 1) // BLOCK):
        scale = scales[block]
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(codes))):
            out[i] = np.float32(codes[i]) * scale
