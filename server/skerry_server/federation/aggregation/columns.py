"""What robust aggregation computes over the columns of a block [updates, columns]: one value per parameter.

Two implementations with the same bits: compiled (:mod:`.compiled`) where numba is installed, NumPy's sort otherwise. A
column is sorted; the median is the middle value or half the sum of the two middle ones in the type of the updates, as
``numpy.median`` gives it; means are summed in float64 in ascending order and rounded once. Only the sign of a zero may
differ between two ways to sort, so a zero is always positive.

A block is scratch: what it holds afterwards is not defined.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_server.federation.aggregation import jit
from skerry_server.federation.aggregation.network import operations

logger = logging.getLogger(__name__)

Block = npt.NDArray[Any]

#: Columns that the NumPy kernels turn and sort at a time.
_SLICE = 1 << 13


class ColumnKernels:
    """The three kernels in NumPy."""

    def median(self, block: Block, out: Block) -> None:
        """Coordinate-wise median (Yin et al., arXiv 1803.01498).

        Args:
            block: float32 or float64 [updates, columns], at least one update; scratch.
            out: [columns], the same type.
        """
        count = len(block)
        for start, values in _sorted_slices(block):
            middle = values[:, count // 2]
            if count % 2 == 0:
                middle = (values[:, count // 2 - 1] + middle) * out.dtype.type(0.5)
            out[start : start + len(values)] = middle + out.dtype.type(0)

    def trimmed_mean(self, block: Block, trim: int, out: Block) -> None:
        """Mean without the ``trim`` smallest and the ``trim`` largest values (Yin et al., arXiv 1803.01498).

        Args:
            block: See :meth:`median`.
            trim: From 0, below half of the updates.
            out: See :meth:`median`.
        """
        count = len(block)
        _check(0 <= 2 * trim < count, f"{trim} values cannot be cut from both ends of {count}")
        for start, values in _sorted_slices(block):
            sums = np.zeros(len(values), np.float64)
            for row in range(trim, count - trim):
                sums += values[:, row]
            out[start : start + len(values)] = sums / (count - 2 * trim)

    def closest_mean(self, block: Block, keep: int, out: Block) -> None:
        """Mean of the ``keep`` values that are closest to the median (second step of Bulyan, arXiv 1802.07927).

        Args:
            block: See :meth:`median`.
            keep: From 1 to the number of updates.
            out: See :meth:`median`.
        """
        count = len(block)
        _check(1 <= keep <= count, f"{keep} of {count} values cannot be kept")
        for start, values in _sorted_slices(block):
            median = values[:, count // 2]
            if count % 2 == 0:
                median = (values[:, count // 2 - 1] + median) * out.dtype.type(0.5)
            # The window of the closest moves up while the value that it would gain is closer than the one it has.
            away = median[:, None]
            first = (away - values[:, : count - keep] > values[:, keep:] - away).sum(axis=1)
            rows = np.arange(len(values))
            sums = np.zeros(len(values), np.float64)
            for offset in range(keep):
                sums += values[rows, first + offset]
            out[start : start + len(values)] = sums / keep


class CompiledColumnKernels(ColumnKernels):
    """The same, compiled for float32 and up to :data:`.compiled.UPDATES` updates."""

    def median(self, block: Block, out: Block) -> None:
        """See :class:`ColumnKernels`."""
        from skerry_server.federation.aggregation import compiled

        count = len(block)
        if not _fits(block, compiled.UPDATES):
            super().median(block, out)
            return
        places = operations(count, (count - 1) // 2, count // 2 + 1)
        compiled.reduce_columns(np.ascontiguousarray(block), places, compiled.MEDIAN, 0, out)
        out += out.dtype.type(0)

    def trimmed_mean(self, block: Block, trim: int, out: Block) -> None:
        """See :class:`ColumnKernels`."""
        from skerry_server.federation.aggregation import compiled

        count = len(block)
        if not _fits(block, compiled.UPDATES) or not 0 <= 2 * trim < count:
            super().trimmed_mean(block, trim, out)
            return
        places = operations(count, trim, count - trim)
        compiled.reduce_columns(np.ascontiguousarray(block), places, compiled.TRIMMED_MEAN, trim, out)

    def closest_mean(self, block: Block, keep: int, out: Block) -> None:
        """See :class:`ColumnKernels`."""
        from skerry_server.federation.aggregation import compiled

        count = len(block)
        if not _fits(block, compiled.UPDATES) or not 1 <= keep <= count:
            super().closest_mean(block, keep, out)
            return
        places = operations(count, 0, count)
        compiled.reduce_columns(np.ascontiguousarray(block), places, compiled.CLOSEST_MEAN, keep, out)


@functools.cache
def column_kernels() -> ColumnKernels:
    """The fastest kernels that this machine can run."""
    if not jit.available():
        logger.info("numba is not installed: robust aggregation runs on NumPy, some five times slower")
        return ColumnKernels()
    try:
        from skerry_server.federation.aggregation import compiled
    except ImportError as error:  # numba refuses versions of NumPy that it does not know
        logger.warning("numba cannot be used (%s): robust aggregation runs on NumPy, some five times slower", error)
        return ColumnKernels()
    logger.debug("robust aggregation runs on %s", compiled.reduce_columns)
    return CompiledColumnKernels()


def _sorted_slices(block: Block) -> Iterator[tuple[int, Block]]:
    """First column and sorted values [columns, updates] of each slice."""
    for start in range(0, block.shape[1], _SLICE):
        values = np.ascontiguousarray(block[:, start : start + _SLICE].T)
        values.sort(axis=1)
        yield start, values


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _fits(block: Block, updates: int) -> bool:
    return block.dtype == np.float32 and len(block) <= updates
