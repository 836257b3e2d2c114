"""A whole campaign in memory over real device sides of secure aggregation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_contract.campaign import EVALUATE
from skerry_contract.tensors import Array, encode_bundle
from skerry_contract.update_codec import difference
from skerry_server.federation.exchange import Broadcast, Exchange
from skerry_server.federation.rounds.campaign_run import Holdout
from skerry_server.federation.rounds.secure_collecting import SecureCollecting
from unit.agent_training.linear_graphs import numbers
from unit.federation.secure_rig import SecureDevice, SecureExchange, authority, model
from unit.federation.world import World

NAMES = tuple(f"d{number}" for number in range(1, 6))


class Unmeasured(SecureExchange):
    """Its devices measure no models."""

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        return {} if broadcast.kind == EVALUATE else super().send(broadcast, node_ids)


class SecureWorld(World):
    """Real device sides of secure aggregation."""

    def __init__(self, folder: Path, *, rounds: int = 1, **settings: Any) -> None:
        super().__init__(folder, [], quorum=0.6, secure_aggregation=True, rounds=rounds, **settings)
        self.secure = [SecureDevice(name, number, self.clock) for number, name in enumerate(NAMES, start=1)]
        self.base = encode_bundle(model())
        self.participants = NAMES
        self.exchange = Unmeasured(self.secure, self.clock)
        self.collecting = self.collect
        self.lost = 0

    def collect(self, exchange: Exchange) -> SecureCollecting:
        return SecureCollecting(
            exchange,
            self.journal,
            authority_pem=authority().certificate_pem,
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    @contextmanager
    def open_exchange(self) -> Iterator[Exchange]:
        self.exchanges.append(self.exchange)  # type: ignore[arg-type]  # another fake
        yield self.exchange

    def evaluate(self, state: Mapping[str, Array]) -> Holdout:
        return super().evaluate({"w": state["layer.bias"]})

    def moved(self) -> dict[str, npt.NDArray[np.float64]]:
        """How far the first round moved the model."""
        state = self.journal.load(self.journal.rounds()[0].parameters_sha256)
        start = model()
        return {key: numbers(array) for key, array in difference(state, start).items() if key != "steps"}
