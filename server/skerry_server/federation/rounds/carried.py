"""What a run carries from one committed round to the next, beside the model itself. Pure: no I/O.

It is journalled in the commit of the round, as one byte string: a process that takes over continues with the same bits
as the one that was killed would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

import numpy as np

from skerry_contract.tensors import Array
from skerry_server.federation.strategies.protocol import StrategyState

_STRATEGY, _PRIVACY, _RESIDUAL = "strategy/", "privacy/", "residual/"
_DIFFERENCE = "difference"

T = TypeVar("T")


@dataclass(frozen=True)
class Carried:
    """One round's legacy.

    Attributes:
        strategy: Of the strategy.
        privacy: Of the privacy plan, for example the clipping norm.
        difference: Encoded difference of the round's model from the one before, ready to be sent; empty without.
        residual: What encoding that difference lost; added to the next one.
    """

    strategy: StrategyState = field(default_factory=StrategyState)
    privacy: Mapping[str, float] = field(default_factory=dict)
    difference: bytes = field(default=b"", repr=False)
    residual: Mapping[str, Array] = field(default_factory=dict, repr=False)

    def encode(self) -> bytes:
        """One byte string; empty when there is nothing to carry."""
        numbers = {_STRATEGY + name: value for name, value in self.strategy.numbers.items()}
        numbers.update({_PRIVACY + name: float(value) for name, value in self.privacy.items()})
        tensors = {_STRATEGY + name: array for name, array in self.strategy.tensors.items()}
        tensors.update({_RESIDUAL + name: array for name, array in self.residual.items()})
        if self.difference:
            tensors[_DIFFERENCE] = np.frombuffer(self.difference, np.uint8)
        return StrategyState(tensors, numbers).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what :meth:`encode` wrote; raises WireError."""
        state = StrategyState.decode(data)
        difference = state.tensors.get(_DIFFERENCE)
        return cls(
            strategy=StrategyState(_below(state.tensors, _STRATEGY), _below(state.numbers, _STRATEGY)),
            privacy=_below(state.numbers, _PRIVACY),
            difference=b"" if difference is None else difference.tobytes(),
            residual=_below(state.tensors, _RESIDUAL),
        )


def _below(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
