"""Coordinate-wise median and trimmed mean (Yin et al., arXiv 1803.01498).

Each parameter is the median of the devices' values, or their mean without the share ``trim`` at either end; numbers of
examples do not count, because a device may claim any. The median withstands less than half of the devices, the trimmed
mean a share of ``trim``. Flower's FedMedian gives the same bits; its FedTrimmedAvg sums in float32 in whatever order
the values were partitioned, this one in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation.columns import column_kernels
from skerry_server.federation.aggregation.rows import combine_columns
from skerry_server.federation.aggregation.spool import Block, UpdateSpool
from skerry_server.federation.strategies.base import RoundStrategy, SpooledAggregation
from skerry_server.federation.strategies.protocol import Aggregation, StrategyState


class CoordinateMedian(RoundStrategy):
    """See the module."""

    name = "median"
    minimum_updates = 3  # of two the median is the mean

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return SpooledAggregation(model, scratch, minimum=self.minimum_updates, combine=self._combine)

    @staticmethod
    def _combine(spool: UpdateSpool) -> dict[str, Array]:
        return combine_columns(spool, spool.order, column_kernels().median)


class TrimmedMean(RoundStrategy):
    """See the module."""

    name = "trimmedmean"

    def __init__(self, *, trim: float) -> None:
        """``trim``: share cut from either end, above 0, below a half; rounded down to a number of updates."""
        self._trim = trim
        self.minimum_updates = max(3, math.ceil(1 / trim - 1e-9))  # with fewer nothing would be cut

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return SpooledAggregation(model, scratch, minimum=self.minimum_updates, combine=self._combine)

    def _combine(self, spool: UpdateSpool) -> dict[str, Array]:
        cut = int(self._trim * len(spool) + 1e-9)

        def kernel(block: Block, out: Block) -> None:
            column_kernels().trimmed_mean(block, cut, out)

        return combine_columns(spool, spool.order, kernel)
