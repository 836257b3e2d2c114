"""What a federated algorithm is, between the round loop and the arithmetic. Pure: no I/O but an aggregation's scratch.

A round with a strategy::

    rules = strategy.local_rules(number, model)             # into the instruction to the devices
    aggregation = strategy.aggregation(model, state, scratch=folder)
    for contribution in updates:                            # as they arrive, or again from the journal
        aggregation.add(contribution)
    trained, state = strategy.step(number, model, aggregation.result(), aggregation, state)
    aggregation.close()

Invariants:

* A strategy keeps nothing in the object between rounds. What it carries over rounds is its :class:`StrategyState`,
  which is journalled in the same commit as the round's model, so that another process goes on from there with the same
  bits.
* An aggregation holds the memory of a few models, whatever the number of updates; what needs all updates at once spools
  them into ``scratch``.
* Nothing here checks an update: names, shapes, types and finiteness are those of the model
  (:func:`skerry_server.federation.rounds.updates.check_state`) before it is a :class:`Contribution`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, encode_bundle

_NUMBERS = "numbers/"
_TENSORS = "tensors/"


@dataclass(frozen=True)
class LocalRules:
    """What a round tells the devices beyond the campaign's settings.

    Attributes:
        proximal_mu: Weight of the proximal term (FedProx, arXiv 1812.06127); 0 is none.
        control: Send the server's control variate (the strategy's ``control``) and expect the device's change of its
            own in :attr:`Contribution.control` (SCAFFOLD, arXiv 1910.06378).
        personal: Shell patterns of parameters that stay on the device (FedBN, personal heads). An update may carry
            them or leave them out; they are never averaged.
    """

    proximal_mu: float = 0.0
    control: bool = False
    personal: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contribution:
    """One checked update.

    Attributes:
        device_id: Who trained.
        examples: Samples trained on, at least 1.
        steps: Gradient steps taken.
        loss: Mean training loss over the last local epoch, at least 0.
        state: Absolute parameters, shapes and types of the model; read-only. Of an update that is ``staleness``
            versions behind they are rebased: the current model plus (what the device trained - the version it started
            from).
        control: Change of the device's control variate, names and shapes of the model's trained parameters.
        staleness: Model versions committed since the device got the one that it started from.
        weight: Above 0; replaces the weight that the strategy would give (1 under differential privacy, the number of
            examples of all its devices for a site).
        starting_loss: Loss of the model as received, before training, where it was measured: F_k(w) of q-FedAvg.
    """

    device_id: str
    examples: int
    steps: int
    loss: float
    state: Mapping[str, Array]
    control: Mapping[str, Array] | None = None
    staleness: int = 0
    weight: float | None = None
    starting_loss: float | None = None


@dataclass(frozen=True)
class StrategyState:
    """What a strategy carries from round to round.

    Attributes:
        tensors: By a name of the strategy's choice, for example "momentum/head.weight".
        numbers: Finite.
    """

    tensors: Mapping[str, Array] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Wire form of :mod:`skerry_contract.tensors`, numbers as scalars; equal states give equal bytes."""
        bundle: dict[str, Array] = {
            _NUMBERS + name: np.array(self.numbers[name], np.float64) for name in sorted(self.numbers)
        }
        bundle.update({_TENSORS + name: self.tensors[name] for name in sorted(self.tensors)})
        return encode_bundle(bundle)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what :meth:`encode` wrote; the tensors are read-only views into ``data``.

        Raises:
            WireError: Broken or unbounded bytes, a name of neither kind, or a number that is not finite.
        """
        tensors: dict[str, Array] = {}
        numbers: dict[str, float] = {}
        for name, array in decode_bundle(data).items():
            if name.startswith(_TENSORS):
                tensors[name.removeprefix(_TENSORS)] = array
            elif name.startswith(_NUMBERS) and array.shape == () and array.dtype == np.float64:
                number = float(array[()])
                if not math.isfinite(number):
                    raise WireError(name, expected="a finite number", got=number)
                numbers[name.removeprefix(_NUMBERS)] = number
            else:
                raise WireError("strategy state", expected="tensors and float64 scalars", got=name)
        return cls(tensors, numbers)


class Aggregation(Protocol):
    """Takes the updates of one round one by one; for one thread."""

    def add(self, contribution: Contribution) -> None:
        """Add an update; also again, from the journal, when a round is resumed by a fresh aggregation.

        Raises:
            ValueError: A weight that is not positive and finite, or names that are not the model's: the caller's fault.
        """
        ...

    def result(self) -> dict[str, Array]:
        """The aggregate, with names, shapes and types of the model.

        Raises:
            ValueError: Fewer updates than the strategy needs; the message says how many.
        """
        ...

    def close(self) -> None:
        """Free the scratch files; harmless when called again. Nothing else may be called after it."""
        ...


class Strategy(Protocol):
    """A federated algorithm.

    Attributes:
        name: As in :data:`skerry_server.federation.strategies.STRATEGIES`.
        minimum_updates: Updates that a round needs for the method to be defined, whatever the campaign's quorum.
        buffer: Updates after which a version is committed in the buffered mode; 0 for a strategy of rounds.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def minimum_updates(self) -> int:
        """See the class."""
        ...

    @property
    def buffer(self) -> int:
        """See the class."""
        ...

    def local_rules(self, round_number: int, model: Mapping[str, Array]) -> LocalRules:
        """What round ``round_number`` (from 1) tells the devices that start from ``model``."""
        ...

    def start(self, model: Mapping[str, Array], *, participants: int = 0) -> StrategyState:
        """State before the first round.

        Args:
            model: Of the base release.
            participants: Devices that accepted the campaign (N of SCAFFOLD); 0 when it is open.

        Raises:
            InvalidRequestError: The strategy does not fit the model; the field is named.
        """
        ...

    def control(self, model: Mapping[str, Array], state: StrategyState) -> dict[str, Array]:
        """Server control variate for the devices of a round whose rules say ``control``; empty otherwise."""
        ...

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """A fresh aggregation for a round that starts from ``model``.

        Args:
            model: State that the devices were given.
            state: As the last committed round left it.
            scratch: Existing folder that this aggregation alone uses; what an earlier process left there is ignored.
        """
        ...

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """The next model and state.

        Args:
            round_number: From 1.
            model: State that the round started from.
            result: What ``aggregation.result()`` gave.
            aggregation: The round's, not yet closed.
            state: The one that ``aggregation`` was made with; not changed.
        """
        ...
