"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378), option II: control variates correct the drift of local steps.

Device i takes its steps by ``g - c_i + c`` and then sets ``c_i+ = c_i - c + (x - y_i) / (K * eta_l)``; it sends
``Delta y_i = y_i - x`` and ``Delta c_i = c_i+ - c_i``. The server, with S the devices of the round among N::

    x <- x + eta_g / |S| * sum(Delta y_i)
    c <- c + 1 / N * sum(Delta c_i)

c starts at zero, and so does each c_i, which stays on the device. The sums are unweighted, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation import StreamingMean
from skerry_server.federation.strategies.base import MeanAggregation, RoundStrategy, added, alike, moved, trained_names
from skerry_server.federation.strategies.protocol import Aggregation, Contribution, LocalRules, StrategyState

_CONTROL = "control/"
_PARTICIPANTS = "participants"


class ControlAggregation(MeanAggregation):
    """Means of the parameters and of the changes of the control variates."""

    def __init__(self, model: Mapping[str, Array]) -> None:
        """``model``: names, shapes and types."""
        super().__init__(model, alike)
        self.changes = StreamingMean({name: model[name] for name in trained_names(model)})

    def add(self, contribution: Contribution) -> None:
        """See :class:`.protocol.Aggregation`; an update without a control variate is a ValueError."""
        if contribution.control is None:
            raise ValueError("an update without the change of its control variate")
        self.changes.add(contribution.control, alike(contribution))
        super().add(contribution)


class Scaffold(RoundStrategy):
    """See the module."""

    name = "scaffold"

    def __init__(self, *, server_learning_rate: float) -> None:
        """``server_learning_rate``: eta_g."""
        self._rate = server_learning_rate

    def local_rules(self, round_number: int, model: Mapping[str, Array]) -> LocalRules:
        """See :class:`.protocol.Strategy`."""
        return LocalRules(control=True)

    def start(self, model: Mapping[str, Array], *, participants: int = 0) -> StrategyState:
        """See :class:`.protocol.Strategy`."""
        zeros = {_CONTROL + name: np.zeros_like(model[name]) for name in trained_names(model)}
        return StrategyState(zeros, {_PARTICIPANTS: float(participants)})

    def control(self, model: Mapping[str, Array], state: StrategyState) -> dict[str, Array]:
        """c."""
        return {name: state.tensors[_CONTROL + name] for name in trained_names(model)}

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return ControlAggregation(model)

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """See :class:`.protocol.Strategy`."""
        if not isinstance(aggregation, ControlAggregation):
            raise TypeError("the aggregation of another strategy")
        # More devices may have taken part than had accepted at the start.
        participants = max(state.numbers.get(_PARTICIPANTS, 0.0), aggregation.changes.weight)
        share = aggregation.changes.weight / participants
        kept = {
            _CONTROL + name: added(state.tensors[_CONTROL + name], array, share)
            for name, array in aggregation.changes.result().items()
        }
        return moved(model, result, self._rate), StrategyState(kept, dict(state.numbers))
