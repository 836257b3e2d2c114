"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757).

With n updates and f attackers the score of an update is the sum of its squared distances to the n - f - 2 others that
are closest to it. Krum takes the update with the lowest score, Multi-Krum the plain mean of the ``keep`` lowest. Proven
for n >= 2 f + 3. Equal scores are decided by the device identifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation.distances import Matrix, gram, squared_distances
from skerry_server.federation.aggregation.rows import weighted_sum
from skerry_server.federation.aggregation.spool import UpdateSpool
from skerry_server.federation.strategies.base import RoundStrategy, SpooledAggregation
from skerry_server.federation.strategies.protocol import Aggregation, StrategyState


def attackers(byzantine: float | int, updates: int) -> int:
    """How many of ``updates`` may be attackers: a count as it is, a share (a float) rounded down."""
    return byzantine if isinstance(byzantine, int) else int(byzantine * updates + 1e-9)


def least_updates(byzantine: float | int, factor: int) -> int:
    """The smallest n from which on ``n >= factor * f(n) + 3`` holds; ``byzantine`` as in :func:`attackers`."""
    if isinstance(byzantine, int):
        return factor * byzantine + 3
    limit = int(3 / (1 - factor * byzantine)) + 1  # behind it the condition holds whatever the rounding
    return next(n + 1 for n in range(limit, -1, -1) if n < factor * attackers(byzantine, n) + 3)


def krum_scores(distances: Matrix, byzantine: int) -> npt.NDArray[np.float64]:
    """Sum of the squared distances to the ``n - byzantine - 2`` closest others (at least one, where there is one).

    Args:
        distances: Squared, float64 [n, n].
        byzantine: f.
    """
    count = len(distances)
    closest = min(max(1, count - byzantine - 2), count - 1)
    others = distances + np.diag(np.full(count, np.inf))  # an update is not its own neighbour
    scores: npt.NDArray[np.float64] = np.sort(others, axis=1)[:, :closest].sum(axis=1)
    return scores


class MultiKrum(RoundStrategy):
    """See the module."""

    def __init__(self, name: str, *, byzantine: float | int, keep: int = 0) -> None:
        """Choose.

        Args:
            name: "krum" or "multikrum".
            byzantine: Attackers: a count, or as a float a share of the updates.
            keep: Updates that are averaged; 0: as many as are no attackers, n - f.
        """
        self.name = name
        self._byzantine = byzantine
        self._keep = keep
        self.minimum_updates = max(least_updates(byzantine, 2), keep)

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""

        def combine(spool: UpdateSpool) -> dict[str, Array]:
            rows = spool.order
            byzantine = attackers(self._byzantine, len(rows))
            scores = krum_scores(squared_distances(gram(spool, rows, model)), byzantine)
            keep = self._keep or len(rows) - byzantine
            chosen = sorted(np.argsort(scores, kind="stable")[:keep])
            return weighted_sum(spool, [rows[place] for place in chosen], np.full(keep, 1 / keep))

        return SpooledAggregation(model, scratch, minimum=self.minimum_updates, combine=combine)
