"""Dealing rows to named parts in an order that no library version can change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from skerry_models.task import Int64


def hashed_order(count: int, salt: str) -> Int64:
    """Permutation of 0 to ``count`` - 1, sorted by the SHA-256 of ``salt/index``."""
    keys = [hashlib.sha256(f"{salt}/{index}".encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def deal(count: int, sizes: Mapping[str, int], rest: Sequence[str], salt: str) -> dict[str, Int64]:
    """Deal ``count`` rows: fixed sizes first, then the rest in turn.

    Args:
        count: Rows to deal.
        sizes: Name to number of rows.
        rest: Names that share what is left; sizes differ by at most one.
        salt: Another salt, another deal.

    Returns:
        Name to ascending row indices; together every row exactly once.

    Raises:
        ValueError: ``sizes`` ask for more rows than there are.
    """
    if sum(sizes.values()) > count:
        raise ValueError(f"{sum(sizes.values())} rows asked for, {count} there")
    order = hashed_order(count, salt)
    parts: dict[str, Int64] = {}
    start = 0
    for name, size in sizes.items():
        parts[name] = np.sort(order[start : start + size])
        start += size
    for position, name in enumerate(rest):
        parts[name] = np.sort(order[start + position :: len(rest)])
    return parts
