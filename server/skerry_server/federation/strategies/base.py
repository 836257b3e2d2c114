"""What strategies have in common: the answers of those that carry nothing over, and two ways to take updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from skerry_contract.tensors import Array
from skerry_server.federation.aggregation import StreamingMean, UpdateSpool
from skerry_server.federation.strategies.protocol import Aggregation, Contribution, LocalRules, StrategyState

Weigh = Callable[[Contribution], float]

#: Ends of the names of statistics that a network gathers and does not train: they are averaged, never stepped.
_GATHERED = (".running_mean", ".running_var", ".num_batches_tracked")


def by_examples(contribution: Contribution) -> float:
    """The weight of FedAvg: the update's own, else its number of examples."""
    return float(contribution.examples) if contribution.weight is None else contribution.weight


def alike(contribution: Contribution) -> float:
    """Every update counts the same, unless it has a weight of its own."""
    return 1.0 if contribution.weight is None else contribution.weight


def trained_names(model: Mapping[str, Array]) -> tuple[str, ...]:
    """Parameters that gradient steps change: floating-point, and not the statistics of a normalisation layer."""
    return tuple(name for name, array in model.items() if array.dtype.kind == "f" and not name.endswith(_GATHERED))


def matching(names: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The names that one of the shell patterns matches."""
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def added(array: Array, change: Array, scale: float) -> Array:
    """``array + scale * change`` in the type of ``array``, which is floating-point."""
    scaled = np.asarray(np.multiply(change, array.dtype.type(scale)))
    scaled += array
    return scaled.astype(array.dtype, copy=False)


def moved(model: Mapping[str, Array], result: Mapping[str, Array], scale: float) -> dict[str, Array]:
    """``model + scale * (result - model)`` in the model's types; what is not trained is taken from ``result``."""
    if scale == 1.0:
        return dict(result)
    trained = frozenset(trained_names(model))
    return {
        name: added(array, np.subtract(result[name], array), scale) if name in trained else result[name]
        for name, array in model.items()
    }


class MeanAggregation:
    """Weighted mean as the updates arrive, in the memory of one model.

    Attributes:
        count: Updates so far.
    """

    def __init__(self, model: Mapping[str, Array], weigh: Weigh = by_examples, *, personal: Sequence[str] = ()) -> None:
        """``personal``: names that are left as the model has them, whether updates carry them or not."""
        self._model = model
        self._weigh = weigh
        self._personal = frozenset(personal)
        self._mean = StreamingMean({name: array for name, array in model.items() if name not in self._personal})
        self.count = 0

    @property
    def weight(self) -> float:
        """Sum of the weights so far."""
        return self._mean.weight

    def add(self, contribution: Contribution) -> None:
        """See :class:`.protocol.Aggregation`."""
        state = contribution.state
        if self._personal:
            state = {name: array for name, array in state.items() if name not in self._personal}
        self._mean.add(state, self._weigh(contribution))
        self.count += 1

    def result(self) -> dict[str, Array]:
        """See :class:`.protocol.Aggregation`."""
        mean = self._mean.result()
        return {name: mean.get(name, array) for name, array in self._model.items()}

    def close(self) -> None:
        """See :class:`.protocol.Aggregation`."""


class SpooledAggregation:
    """Keeps the updates on disk until all are there; every update counts the same, whatever weight it claims."""

    def __init__(
        self,
        model: Mapping[str, Array],
        scratch: Path,
        *,
        minimum: int,
        combine: Callable[[UpdateSpool], dict[str, Array]],
    ) -> None:
        """``combine`` makes the state of a spool with at least ``minimum`` updates."""
        self._spool = UpdateSpool(model, scratch)
        self._minimum = minimum
        self._combine = combine

    @property
    def count(self) -> int:
        """Updates so far."""
        return len(self._spool)

    def add(self, contribution: Contribution) -> None:
        """See :class:`.protocol.Aggregation`; raises PlatformError when the disk is full."""
        self._spool.add(contribution.device_id, contribution.state)

    def result(self) -> dict[str, Array]:
        """See :class:`.protocol.Aggregation`."""
        if self.count < self._minimum:
            raise ValueError(f"{self.count} updates, the strategy needs {self._minimum}")
        return self._combine(self._spool)

    def close(self) -> None:
        """See :class:`.protocol.Aggregation`."""
        self._spool.close()


class RoundStrategy:
    """FedAvg's answers, for strategies to override what is different (see :class:`.protocol.Strategy`)."""

    name = "fedavg"
    minimum_updates = 1
    buffer = 0

    def local_rules(self, round_number: int, model: Mapping[str, Array]) -> LocalRules:
        """See :class:`.protocol.Strategy`."""
        return LocalRules()

    def start(self, model: Mapping[str, Array], *, participants: int = 0) -> StrategyState:
        """See :class:`.protocol.Strategy`."""
        return StrategyState()

    def control(self, model: Mapping[str, Array], state: StrategyState) -> dict[str, Array]:
        """See :class:`.protocol.Strategy`."""
        return {}

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return MeanAggregation(model)

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """See :class:`.protocol.Strategy`."""
        return dict(result), state
