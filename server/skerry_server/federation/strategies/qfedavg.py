"""q-FedAvg (Li et al., arXiv 1905.10497): devices on which the model is bad count more, so that it is fair.

With L = 1 / local learning rate, F_k the loss of the model on device k and w_k what it trained::

    Delta_k = F_k ** q * L * (w - w_k)
    h_k = q * F_k ** (q - 1) * |L * (w - w_k)| ** 2 + L * F_k ** q
    w <- w - sum(Delta_k) / sum(h_k)

The sum of the Delta_k is ``L * sum(F_k ** q) * (w - mean of w_k weighted by F_k ** q)``, so one streaming mean and one
number are enough. Losses get 1e-10 added, as in Flower. q = 0 is the unweighted mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skerry_contract.tensors import Array
from skerry_server.federation.strategies.base import MeanAggregation, RoundStrategy, alike, moved, trained_names
from skerry_server.federation.strategies.protocol import Aggregation, Contribution, StrategyState

_FLOOR = 1e-10
#: Elements of a tensor whose squares are summed at a time.
_ELEMENTS = 1 << 18


class FairAggregation(MeanAggregation):
    """Mean weighted by the losses, and the sum of the h_k."""

    def __init__(self, model: Mapping[str, Array], q: float, lipschitz: float) -> None:
        """``lipschitz``: L."""
        self._q = q
        self._lipschitz = lipschitz
        self._names = trained_names(model)
        super().__init__(model, lambda update: alike(update) * self._loss(update) ** q)
        self.normaliser = 0.0

    def _loss(self, contribution: Contribution) -> float:
        measured = contribution.loss if contribution.starting_loss is None else contribution.starting_loss
        return max(0.0, measured) + _FLOOR

    def add(self, contribution: Contribution) -> None:
        """See :class:`.protocol.Aggregation`."""
        super().add(contribution)
        loss, scale = self._loss(contribution), self._lipschitz
        square = scale**2 * sum(squared_distance(self._model[name], contribution.state[name]) for name in self._names)
        self.normaliser += alike(contribution) * (self._q * loss ** (self._q - 1) * square + scale * loss**self._q)


class QFedAvg(RoundStrategy):
    """See the module."""

    name = "qfedavg"

    def __init__(self, *, q: float, local_learning_rate: float) -> None:
        """``local_learning_rate``: of the devices' SGD, the inverse of L."""
        self._q = q
        self._lipschitz = 1.0 / local_learning_rate

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return FairAggregation(model, self._q, self._lipschitz)

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """See :class:`.protocol.Strategy`."""
        if not isinstance(aggregation, FairAggregation):
            raise TypeError("the aggregation of another strategy")
        return moved(model, result, self._lipschitz * aggregation.weight / aggregation.normaliser), state


def squared_distance(a: Array, b: Array) -> float:
    """Sum of squared differences in float64, piece by piece."""
    total = 0.0
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat_a.size, _ELEMENTS):
        part = slice(start, start + _ELEMENTS)
        difference = np.subtract(flat_a[part], flat_b[part], dtype=np.float64)
        total += float(difference @ difference)
    return total
