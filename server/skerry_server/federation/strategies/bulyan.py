"""Bulyan (El Mhamdi et al., ICML 2018, arXiv 1802.07927) over Krum.

With n >= 4 f + 3 updates: theta = n - 2 f of them are chosen one by one, each time the one that Krum would take of
those that are left; then each parameter is the mean of the beta = theta - 2 f chosen values that are closest to their
median.
Flower's Bulyan chooses the theta lowest scores at once unless it is given another rule; the paper's is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation.columns import column_kernels
from skerry_server.federation.aggregation.distances import Matrix, gram, squared_distances
from skerry_server.federation.aggregation.rows import combine_columns
from skerry_server.federation.aggregation.spool import Block, UpdateSpool
from skerry_server.federation.strategies.base import RoundStrategy, SpooledAggregation
from skerry_server.federation.strategies.krum import attackers, krum_scores, least_updates
from skerry_server.federation.strategies.protocol import Aggregation, StrategyState


def select(distances: Matrix, byzantine: int) -> list[int]:
    """The first step: indices of the ``n - 2 * byzantine`` updates, in the order in which they are chosen."""
    left = list(range(len(distances)))
    chosen: list[int] = []
    for _ in range(len(distances) - 2 * byzantine):
        if len(left) == 1:
            best = 0
        else:
            best = int(np.argmin(krum_scores(distances[np.ix_(left, left)], byzantine)))
        chosen.append(left.pop(best))
    return chosen


class Bulyan(RoundStrategy):
    """See the module."""

    name = "bulyan"

    def __init__(self, *, byzantine: float | int) -> None:
        """``byzantine``: attackers, a count, or as a float a share of the updates below a quarter."""
        self._byzantine = byzantine
        self.minimum_updates = least_updates(byzantine, 4)

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""

        def combine(spool: UpdateSpool) -> dict[str, Array]:
            rows = spool.order
            byzantine = attackers(self._byzantine, len(rows))
            chosen = sorted(select(squared_distances(gram(spool, rows, model)), byzantine))
            keep = len(chosen) - 2 * byzantine

            def kernel(block: Block, out: Block) -> None:
                column_kernels().closest_mean(block, keep, out)

            return combine_columns(spool, [rows[place] for place in chosen], kernel)

        return SpooledAggregation(model, scratch, minimum=self.minimum_updates, combine=combine)
