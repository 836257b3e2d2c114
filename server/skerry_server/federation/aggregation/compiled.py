"""The kernel over a block of updates [updates, columns], compiled: the fast twin of those in ``columns``.

Imported by the first use only (numba takes half a second). One function for all, because compiling it is what costs.
It works tile by tile: a tile's columns of all updates stay in a core's second-level cache while the operations of a
sorting network (:mod:`.network`) go over them with vector instructions. ``a if a < b else b`` and ``b if a < b else a``
are one instruction each, unless the compiler sees that one of the two is what lies there already: then it makes a
masked store of them, ten times as slow on some processors. So a row that may keep its value is not stored first, or has
zero added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_server.federation.aggregation.jit import compiled

Block = npt.NDArray[Any]
#: Columns of a tile.
TILE = 512
#: Most updates: above, a sorting network of n log(n)^2 comparators loses against NumPy's sort.
UPDATES = 1024
ZERO = np.float32(0.0)
#: What is computed of the sorted values.
MEDIAN, TRIMMED_MEAN, CLOSEST_MEAN = 0, 1, 2


def _reduce_columns(block: Block, operations: Block, what: int, number: int, out: Block) -> None:
    """Fill ``out``.

    The loops over a tile have a fixed count: what lies behind the last column is sorted too and not read.

    Args:
        block: float32 [updates, columns], C order; not changed.
        operations: :func:`.network.operations` for the places that are read.
        what: One of the constants above.
        number: Values cut from either end (trimmed mean) or kept (closest mean).
        out: float32 [columns].
    """
    count, columns = block.shape
    tile = np.zeros((count, TILE), np.float32)
    sums = np.empty(TILE, np.float64)
    median = np.empty(TILE, np.float32)
    first = np.empty(TILE, np.int32)
    half = np.float32(0.5)
    for start in range(0, columns, TILE):
        width = min(TILE, columns - start)
        for row in range(count):
            source = block[row, start : start + width]
            target = tile[row]
            for x in range(width):
                target[x] = source[x]
        for operation in range(operations.shape[0]):
            pattern = operations[operation, 0]
            row_a = tile[operations[operation, 1]]
            row_b = tile[operations[operation, 2]]
            row_c = tile[operations[operation, 3]]
            row_d = tile[operations[operation, 4]]
            if pattern == 0:
                for x in range(TILE):
                    a, b = row_a[x], row_b[x]
                    row_a[x] = (a if a < b else b) + ZERO
                    row_b[x] = b if a < b else a
            elif pattern == 1:
                for x in range(TILE):
                    a, b, c, d = row_a[x], row_b[x], row_c[x], row_d[x]
                    low, c = (a, c) if a < c else (c, a)
                    b, high = (b, d) if b < d else (d, b)
                    row_b[x] = b if b < c else c
                    row_c[x] = c if b < c else b
                    row_a[x] = low
                    row_d[x] = high
            elif pattern == 2:
                for x in range(TILE):
                    a, b, c, d = row_a[x], row_b[x], row_c[x], row_d[x]
                    a, b = (a, b) if a < b else (b, a)
                    c, d = (c, d) if c < d else (d, c)
                    row_a[x] = a if a < c else c
                    row_b[x] = b if b < d else d
                    row_c[x] = c if a < c else a
                    row_d[x] = d if b < d else b
            elif pattern == 3:
                for x in range(TILE):
                    a, b, c, d = row_a[x], row_b[x], row_c[x], row_d[x]
                    a, b = (a, b) if a < b else (b, a)
                    c, d = (c, d) if c < d else (d, c)
                    low, c = (a, c) if a < c else (c, a)
                    b, high = (b, d) if b < d else (d, b)
                    row_b[x] = b if b < c else c
                    row_c[x] = c if b < c else b
                    row_a[x] = low
                    row_d[x] = high
            else:
                for x in range(TILE):
                    a, b, c, d = row_a[x], row_b[x], row_c[x], row_d[x]
                    low, b = (a, b) if a < b else (b, a)
                    c, high = (c, d) if c < d else (d, c)
                    row_b[x] = b if b < c else c
                    row_c[x] = c if b < c else b
                    row_a[x] = low
                    row_d[x] = high
        if what == MEDIAN:
            lower, upper = tile[(count - 1) // 2], tile[count // 2]
            for x in range(width):
                out[start + x] = upper[x] if count % 2 else (lower[x] + upper[x]) * half
        elif what == TRIMMED_MEAN:
            sums[:] = 0.0
            row = number
            while row + 4 <= count - number:  # four rows at a time: the sums are loaded and stored a quarter as often
                row_a, row_b, row_c, row_d = tile[row], tile[row + 1], tile[row + 2], tile[row + 3]
                for x in range(TILE):
                    sums[x] = (((sums[x] + row_a[x]) + row_b[x]) + row_c[x]) + row_d[x]
                row += 4
            while row < count - number:
                row_a = tile[row]
                for x in range(TILE):
                    sums[x] += row_a[x]
                row += 1
            for x in range(width):
                out[start + x] = sums[x] / (count - 2 * number)
        else:
            lower, upper = tile[(count - 1) // 2], tile[count // 2]
            for x in range(TILE):
                median[x] = upper[x] if count % 2 else (lower[x] + upper[x]) * half
                first[x] = 0
                sums[x] = 0.0
            for row in range(count - number):  # is the value that the window would gain closer than the one it has?
                row_a, row_b = tile[row], tile[row + number]
                for x in range(TILE):
                    first[x] += median[x] - row_a[x] > row_b[x] - median[x]
            for row in range(count):
                row_a = tile[row]
                for x in range(TILE):
                    inside = first[x] <= row and row < first[x] + number
                    sums[x] += row_a[x] if inside else np.float32(0.0)
            for x in range(width):
                out[start + x] = sums[x] / number


reduce_columns = compiled(_reduce_columns)
