"""Geometric median by the smoothed Weiszfeld algorithm: RFA (Pillutla et al., arXiv 1912.13445).

``v <- sum(b_i * x_i) / sum(b_i)`` with ``b_i = 1 / max(nu, |v - x_i|)``, from the mean, until nothing moves. It
withstands less than half of the devices. Every update counts the same (alpha_i = 1 / n), because a device may claim any
number of examples.

v is always an affine combination of the updates, v = sum(w_i * x_i), so the distances come from the matrix G of inner
products, ``|v - x_i|^2 = w'Gw - 2 (Gw)_i + G_ii``, and the updates are read twice in all, however many iterations. With
G taken from the model the terms of a huge update cancel before they meet those of an honest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation.distances import Matrix, gram
from skerry_server.federation.aggregation.rows import weighted_sum
from skerry_server.federation.aggregation.spool import UpdateSpool
from skerry_server.federation.strategies.base import RoundStrategy, SpooledAggregation
from skerry_server.federation.strategies.protocol import Aggregation, StrategyState

#: Largest relative change of a distance at which the iteration stands; a huge update's weight is too small to tell.
_TOLERANCE = 1e-9


def weiszfeld_weights(products: Matrix, *, smoothing: float, iterations: int) -> npt.NDArray[np.float64]:
    """Weights of the updates in their geometric median; float64 [n], they sum to 1.

    Args:
        products: Inner products of the updates, float64 [n, n].
        smoothing: nu, relative to the median norm of the updates (absolute where that is 0).
        iterations: Most iterations.
    """
    squares = np.diag(products)
    floor = smoothing * (float(np.sqrt(np.median(squares))) or 1.0)
    weights = np.full(len(products), 1.0 / len(products))
    before = np.zeros(len(products))
    for _ in range(iterations):
        moments = products @ weights
        distances = np.sqrt(np.maximum(weights @ moments - 2.0 * moments + squares, 0.0))
        distances = np.maximum(distances, floor)
        if (np.abs(distances - before) <= _TOLERANCE * distances).all():
            break
        before = distances
        weights = 1.0 / distances
        weights /= weights.sum()
    return weights


class GeometricMedian(RoundStrategy):
    """See the module."""

    name = "geometricmedian"
    minimum_updates = 3  # of two every point between them is a median

    def __init__(self, *, smoothing: float, iterations: int) -> None:
        """See :func:`weiszfeld_weights`."""
        self._smoothing = smoothing
        self._iterations = iterations

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""

        def combine(spool: UpdateSpool) -> dict[str, Array]:
            rows = spool.order
            products = gram(spool, rows, model)
            weights = weiszfeld_weights(products, smoothing=self._smoothing, iterations=self._iterations)
            return weighted_sum(spool, rows, weights)

        return SpooledAggregation(model, scratch, minimum=self.minimum_updates, combine=combine)
