"""Flower's own strategies: what they tell the devices, and the step of those that optimise on the server.

The only file of the strategies that knows flwr. A Flower strategy keeps its moments in the object and wants all updates
at once; here an object lives for one tensor of one round: it is given the moments of the last round
(:class:`.protocol.StrategyState`) and the mean of the updates as if it were the only one. So the formulas are Flower's
to the bit, the memory is that of one tensor beyond the moments, and nothing is lost with the process.

* FedProx: Li et al., arXiv 1812.06127.
* FedAvgM: Hsu et al., arXiv 1909.06335.
* FedAdagrad, FedAdam, FedYogi: Reddi et al., arXiv 2003.00295 (v starts at 0, FedAdam's rate is bias-corrected, as in
  Flower). The statistics of normalisation layers and integers are averaged: Adam would make a variance negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerry_contract.tensors import Array
from skerry_server.federation.strategies.base import RoundStrategy, trained_names
from skerry_server.federation.strategies.protocol import Aggregation, LocalRules, StrategyState
from skerry_server.federation.strategies.settings import CampaignChoices

_ADAPTIVE = {"fedadam": "FedAdam", "fedyogi": "FedYogi", "fedadagrad": "FedAdagrad"}


@dataclass(frozen=True)
class _Reply:
    """The mean as the only reply of a round."""

    content: Any


class FedProx(RoundStrategy):
    """FedAvg's mean; the devices hold on to the model that they were given."""

    name = "fedprox"

    def __init__(self, proximal_mu: float) -> None:
        """``proximal_mu``: weight of the term, from 0."""
        self._mu = proximal_mu

    def local_rules(self, round_number: int, model: Mapping[str, Array]) -> LocalRules:
        """What Flower would write into the round's configuration."""
        from flwr.app import ArrayRecord, ConfigRecord
        from flwr.serverapp.strategy import FedProx as FlowerFedProx

        config = ConfigRecord()
        flower = FlowerFedProx(proximal_mu=self._mu)
        flower.fraction_train = 0.0  # configure, but select nobody: the round loop does that
        list(flower.configure_train(round_number, ArrayRecord(), config, None))
        return LocalRules(proximal_mu=float(config["proximal-mu"]))


class ServerMomentum(RoundStrategy):
    """FedAvgM: momentum on the difference that the mean makes."""

    name = "fedavgm"

    def __init__(self, *, momentum: float, server_learning_rate: float) -> None:
        """See :data:`.settings.FIELDS`."""
        self._settings = {"server_momentum": momentum, "server_learning_rate": server_learning_rate}

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """See :class:`.protocol.Strategy`."""
        from flwr.app import Array as FlowerArray
        from flwr.app import ArrayRecord
        from flwr.serverapp.strategy import FedAvgM

        new, kept = dict(result), {}
        for name in trained_names(model):
            flower = FedAvgM(**self._settings)
            flower.current_arrays = ArrayRecord({name: FlowerArray(np.asarray(model[name]))})
            if (before := state.tensors.get(f"momentum/{name}")) is not None:
                flower.momentum_vector = [before]
            new[name] = _stepped(flower, round_number, name, result[name])
            if flower.momentum_vector is not None:
                kept[f"momentum/{name}"] = flower.momentum_vector[0]
        return new, StrategyState(kept)


class ServerAdaptive(RoundStrategy):
    """FedAdam, FedYogi and FedAdagrad."""

    def __init__(
        self, name: str, *, server_learning_rate: float, local_learning_rate: float, **settings: float
    ) -> None:
        """``settings``: tau, and for FedAdam and FedYogi beta_1 and beta_2 (see :data:`.settings.FIELDS`)."""
        self.name = name
        self._settings = {"eta": server_learning_rate, "eta_l": local_learning_rate, **settings}

    def step(
        self,
        round_number: int,
        model: Mapping[str, Array],
        result: Mapping[str, Array],
        aggregation: Aggregation,
        state: StrategyState,
    ) -> tuple[dict[str, Array], StrategyState]:
        """See :class:`.protocol.Strategy`."""
        from flwr.serverapp import strategy as flower_strategies

        new, kept = dict(result), {}
        for name in trained_names(model):
            flower = getattr(flower_strategies, _ADAPTIVE[self.name])(**self._settings)
            flower.current_arrays = {name: np.asarray(model[name])}
            if (first := state.tensors.get(f"m/{name}")) is not None:
                flower.m_t = {name: first}
                flower.v_t = {name: state.tensors[f"v/{name}"]}
            new[name] = _stepped(flower, round_number, name, result[name])
            kept[f"m/{name}"] = np.asarray(flower.m_t[name], model[name].dtype)
            kept[f"v/{name}"] = np.asarray(flower.v_t[name], model[name].dtype)
        return new, StrategyState(kept)


def _stepped(flower: Any, round_number: int, name: str, mean: Array) -> Array:
    """What a Flower strategy makes of one tensor's mean; the type stays."""
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, MetricRecord, RecordDict

    content = RecordDict(
        {"arrays": ArrayRecord({name: FlowerArray(np.asarray(mean))}), "metrics": MetricRecord({"num-examples": 1})}
    )
    flower._check_and_log_replies = lambda replies, **_: (list(replies), [])  # noqa: SLF001  # else a log line a tensor
    arrays, _ = flower.aggregate_train(round_number, [_Reply(content)])
    stepped: Array = arrays[name].numpy().astype(mean.dtype, copy=False)
    return stepped


def create_fedprox(settings: CampaignChoices) -> FedProx:
    """From a campaign's settings."""
    return FedProx(settings.proximal_mu)
