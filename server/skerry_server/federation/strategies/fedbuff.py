"""FedBuff (Nguyen et al., arXiv 2106.06639): asynchronous; a version is committed for every K updates.

``w <- w + eta / K * sum over the buffer of s(tau_k) * Delta_k`` with ``s(tau) = 1 / (1 + tau) ** 0.5``: an update that
is tau versions behind counts less, and the step is divided by K, not by the sum of the weights, so that a buffer of
stale updates also takes a smaller step. PAPAYA (arXiv 2111.04877) runs it in production.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skerry_contract.tensors import Array
from skerry_server.federation.strategies.base import MeanAggregation, RoundStrategy, alike, moved
from skerry_server.federation.strategies.protocol import Aggregation, Contribution, StrategyState


class BufferAggregation(MeanAggregation):
    """The mean by staleness, and what a plain mean does not say: the weights before staleness."""

    def __init__(self, model: Mapping[str, Array], exponent: float) -> None:
        """``exponent``: of ``1 + staleness``."""
        super().__init__(model, lambda update: alike(update) * (1.0 + update.staleness) ** -exponent)
        self.fresh_weight = 0.0

    def add(self, contribution: Contribution) -> None:
        """See :class:`.protocol.Aggregation`."""
        super().add(contribution)
        self.fresh_weight += alike(contribution)


class FedBuff(RoundStrategy):
    """See the module."""

    name = "fedbuff"

    def __init__(
        self, *, buffer: int, server_learning_rate: float, staleness_exponent: float, maximum_staleness: int
    ) -> None:
        """See :data:`.settings.FIELDS`; an update more than ``maximum_staleness`` versions behind is not for adding."""
        self.buffer = buffer
        self.maximum_staleness = maximum_staleness
        self._rate = server_learning_rate
        self._exponent = staleness_exponent

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return BufferAggregation(model, self._exponent)

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """See :class:`.protocol.Strategy`."""
        if not isinstance(aggregation, BufferAggregation):
            raise TypeError("the aggregation of another strategy")
        scale = self._rate * aggregation.weight / aggregation.fresh_weight
        return moved(model, result, scale), state
