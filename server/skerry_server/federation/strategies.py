"""What a round tells the devices, and how their updates become a model, by the name of a Flower strategy.

FedAvg (arXiv 1602.05629) and FedProx (arXiv 1812.06127) are Flower's: its ``configure_train`` says what the devices
are told. Their mean is computed by :class:`~skerry_server.federation.aggregation.StreamingMean`, which equals Flower's
``aggregate_train`` (a test holds them against each other) in the memory of one model instead of one per device.

A strategy of one's own is an entry of :data:`STRATEGIES`:

>>> STRATEGIES["mine"] = lambda settings: MyStrategy(settings)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from skerry_contract.tensors import Array
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.aggregation import StreamingMean
from skerry_server.federation.settings import CampaignSettings


class Aggregation(Protocol):
    """Takes the updates of one round one by one."""

    def add(self, state: Mapping[str, Array], weight: float) -> None:
        """Add a checked state; ``weight`` is the number of examples, above 0."""
        ...

    def result(self) -> dict[str, Array]:
        """The next model; raises ValueError when nothing was added."""
        ...


class Strategy(Protocol):
    """A federated algorithm. It keeps nothing between rounds, so that a round can be resumed by another process."""

    def proximal_mu(self, round_number: int) -> float:
        """Weight of the proximal term in a round."""
        ...

    def aggregation(self, model: Mapping[str, Array]) -> Aggregation:
        """A fresh aggregation for a round that starts from ``model``."""
        ...


class FlowerAveraging:
    """A Flower strategy of the FedAvg family, made of Flower's own object."""

    def __init__(self, flower: Any) -> None:
        """``flower``: an instance of ``flwr.serverapp.strategy.FedAvg`` or of a class below it."""
        self._flower = flower

    def proximal_mu(self, round_number: int) -> float:
        """What Flower would write into the round's configuration under "proximal-mu"; 0 when it writes nothing."""
        from flwr.app import ArrayRecord, ConfigRecord

        config = ConfigRecord()
        self._flower.fraction_train = 0.0  # configure, but select nobody: the round loop does that
        list(self._flower.configure_train(round_number, ArrayRecord(), config, None))
        return float(config.get("proximal-mu", 0.0))

    def aggregation(self, model: Mapping[str, Array]) -> Aggregation:
        """See :class:`Strategy`."""
        return StreamingMean(model)


def _fedavg(settings: CampaignSettings) -> Strategy:
    from flwr.serverapp.strategy import FedAvg

    return FlowerAveraging(FedAvg())


def _fedprox(settings: CampaignSettings) -> Strategy:
    from flwr.serverapp.strategy import FedProx

    return FlowerAveraging(FedProx(proximal_mu=settings.proximal_mu))


#: Name to what makes the strategy of a campaign.
STRATEGIES: dict[str, Callable[[CampaignSettings], Strategy]] = {"fedavg": _fedavg, "fedprox": _fedprox}


def check_strategy(name: str) -> str:
    """Return ``name`` if there is such a strategy; raises InvalidRequestError."""
    if name not in STRATEGIES:
        raise InvalidRequestError("strategy", expected=f"one of {', '.join(STRATEGIES)}", got=name)
    return name


def create_strategy(name: str, settings: CampaignSettings) -> Strategy:
    """The strategy of a campaign; raises InvalidRequestError for an unknown name."""
    return STRATEGIES[check_strategy(name)](settings)
