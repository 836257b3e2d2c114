"""From spooled updates to one state: by a kernel over each parameter's values, or as a weighted sum of updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation.spool import Block, UpdateSpool

Weights = npt.NDArray[np.float64]


def combine_columns(
    spool: UpdateSpool, rows: Sequence[int], kernel: Callable[[Block, Block], None], *, share: float = 0.5
) -> dict[str, Array]:
    """One value per parameter.

    Args:
        spool: The updates.
        rows: Numbers of those that count.
        kernel: Gets a block [rows, columns], which it may overwrite, and fills an array [columns] of the same type.
        share: Of a block's memory; the rest is for the kernel.
    """
    columns: list[Block] = []
    for segment in spool.layout.segments:
        out = np.empty(segment.columns, segment.dtype)
        for start, block in spool.blocks(segment, rows, share=share):
            kernel(block, out[start : start + block.shape[1]])
        columns.append(out)
    return spool.layout.state(columns)


def weighted_sum(spool: UpdateSpool, rows: Sequence[int], weights: Weights) -> dict[str, Array]:
    """``sum(weights[i] * update i)`` in float64, rounded once to the types of the model.

    Args:
        spool: The updates.
        rows: Numbers of those that count.
        weights: float64 [rows]; they sum to 1 for a mean.
    """
    if len(rows) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(rows)} updates")

    def kernel(block: Block, out: Block) -> None:
        total: npt.NDArray[Any] = np.zeros(block.shape[1], np.float64)
        for values, weight in zip(block, weights, strict=True):
            total += weight * values.astype(np.float64, copy=False)
        out[:] = total

    return combine_columns(spool, rows, kernel)
