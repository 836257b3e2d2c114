"""Batcher's odd-even merge sorting network (AFIPS 1968), the part that a few sorted places need, and its packing. Pure.

A network is a fixed list of comparators (i, j), i < j: "put the smaller into i, the larger into j". The same list sorts
every column of a block, so a comparator works on whole rows with vector instructions and without branches. It is bound
by loading and storing rows, so comparators over the same four rows are packed into one operation that loads and stores
each row once: 100 rows take 1.6 times fewer loads and stores that way.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Comparator = tuple[int, int]
#: int64 [operations, 5]: number of the pattern, and the rows it is over, ascending; a pattern of two rows leaves two 0.
Operations = npt.NDArray[np.int64]

#: The patterns that an operation may have, as comparators over its rows. Each is a loop of ``compiled``.
PATTERNS: tuple[tuple[Comparator, ...], ...] = (
    ((0, 1),),
    ((0, 2), (1, 3), (1, 2)),
    ((0, 1), (2, 3), (0, 2), (1, 3)),
    ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)),
    ((0, 1), (2, 3), (1, 2)),
)


def sorting_network(count: int) -> list[Comparator]:
    """Comparators that sort ``count`` values in ascending order, at least 1.

    >>> sorting_network(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    comparators: list[Comparator] = []
    merged = 1
    while merged < count:
        distance = merged
        while distance >= 1:
            for start in range(distance % merged, count - distance, 2 * distance):
                for low in range(start, min(start + distance, count - distance)):
                    if low // (2 * merged) == (low + distance) // (2 * merged):
                        comparators.append((low, low + distance))
            distance //= 2
        merged *= 2
    return comparators


def selection_network(count: int, places: Iterable[int]) -> list[Comparator]:
    """The comparators of :func:`sorting_network` that ``places`` (from 0) need to hold their sorted values."""
    needed = set(places)
    kept: list[Comparator] = []
    for low, high in reversed(sorting_network(count)):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return kept[::-1]


class _Packing:
    """Takes comparators off the front of each row's queue, in an order that the queues allow."""

    def __init__(self, comparators: Sequence[Comparator]) -> None:
        self._queues: defaultdict[int, list[Comparator]] = defaultdict(list)
        for comparator in reversed(comparators):
            for row in comparator:
                self._queues[row].append(comparator)

    def ready(self, comparator: Comparator, skip: dict[int, int]) -> bool:
        """Is it next on both its rows, behind ``skip`` comparators of each?"""
        return all(
            len(self._queues[row]) > skip.get(row, 0) and self._queues[row][-1 - skip.get(row, 0)] is comparator
            for row in comparator
        )

    def within(self, rows: Sequence[int]) -> list[Comparator]:
        """All that could be done now without any row but ``rows``, those over the first rows first."""
        skip = dict.fromkeys(rows, 0)
        found: list[Comparator] = []
        while True:
            ready = {
                queue[-1 - skip[row]]
                for row in rows
                if len(queue := self._queues[row]) > skip[row]
                and all(other in skip for other in queue[-1 - skip[row]])
                and self.ready(queue[-1 - skip[row]], skip)
            }
            if not ready:
                return found
            for comparator in sorted(ready):
                found.append(comparator)
                for row in comparator:
                    skip[row] += 1

    def partners(self, comparator: Comparator) -> list[Comparator]:
        """Comparators that are ready and end on a row that the next one of ``comparator``'s rows is compared with."""
        found: list[Comparator] = []
        for row in comparator:
            queue = self._queues[row]
            if len(queue) > 1:
                other = queue[-2][0] if queue[-2][1] == row else queue[-2][1]
                front = self._queues[other][-1]
                if not set(front) & set(comparator) and self.ready(front, {}):
                    found.append(front)
        return found

    def take(self, comparators: Sequence[Comparator]) -> None:
        """They are done."""
        for comparator in comparators:
            for row in comparator:
                self._queues[row].pop()


def pack(comparators: Sequence[Comparator]) -> Operations:
    """Operations that do the same as ``comparators``, with fewer loads and stores."""
    # Distinct objects: equal comparators may occur more than once in a network, and ``is`` tells them apart.
    own = [(low, high) for low, high in comparators]
    packing = _Packing(own)
    done: set[int] = set()
    operations: list[tuple[int, ...]] = []
    for comparator in own:
        if id(comparator) in done:
            continue
        best: tuple[int, tuple[int, ...], list[Comparator]] = (0, (*comparator, 0, 0), [comparator])
        for partner in packing.partners(comparator):
            rows = sorted((*comparator, *partner))
            found = packing.within(rows)
            for number, pattern in enumerate(PATTERNS[1:], start=1):
                over = [(rows[low], rows[high]) for low, high in pattern]
                if len(over) > len(best[2]) and found[: len(over)] == over:
                    best = (number, tuple(rows), found[: len(over)])
        number, rows_of, taken = best
        packing.take(taken)
        done.update(id(each) for each in taken)
        operations.append((number, *rows_of))
    return np.array(operations, dtype=np.int64).reshape(-1, 5)


@functools.lru_cache(maxsize=64)
def operations(count: int, first: int, stop: int) -> Operations:
    """Operations over ``count`` rows after which the rows ``first`` to ``stop - 1`` are sorted; read-only."""
    packed = pack(selection_network(count, range(first, stop)))
    packed.setflags(write=False)
    return packed
