"""How the updates of a round become a model, by name.

An own strategy is a class that overrides what is different in :class:`.base.RoundStrategy`, and an entry:

>>> STRATEGIES["mine"] = lambda settings: MyStrategy()  # doctest: +SKIP

and, where it has settings, their fields in :data:`.settings.FIELDS`. Only what a campaign uses is imported: the API
process knows the strategies by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skerry_server.errors import InvalidRequestError
from skerry_server.federation.strategies.base import RoundStrategy
from skerry_server.federation.strategies.protocol import (
    Aggregation,
    Contribution,
    LocalRules,
    Strategy,
    StrategyState,
)
from skerry_server.federation.strategies.settings import CampaignChoices, check_strategy_settings

__all__ = [
    "STRATEGIES",
    "Aggregation",
    "CampaignChoices",
    "Contribution",
    "LocalRules",
    "RoundStrategy",
    "Strategy",
    "StrategyState",
    "check_strategy",
    "check_strategy_settings",
    "create_strategy",
    "least_updates",
]


def _chosen(name: str, settings: CampaignChoices) -> dict[str, Any]:
    return check_strategy_settings(name, settings.strategy_settings)


def _fedavg(settings: CampaignChoices) -> Strategy:
    return RoundStrategy()


def _fedprox(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.flower_objects import FedProx

    return FedProx(settings.proximal_mu)


def _fedavgm(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.flower_objects import ServerMomentum

    return ServerMomentum(**_chosen("fedavgm", settings))


def _adaptive(name: str) -> Callable[[CampaignChoices], Strategy]:
    def create(settings: CampaignChoices) -> Strategy:
        from skerry_server.federation.strategies.flower_objects import ServerAdaptive

        return ServerAdaptive(name, local_learning_rate=settings.learning_rate, **_chosen(name, settings))

    return create


def _scaffold(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.scaffold import Scaffold

    return Scaffold(**_chosen("scaffold", settings))


def _personal(name: str) -> Callable[[CampaignChoices], Strategy]:
    def create(settings: CampaignChoices) -> Strategy:
        from skerry_server.federation.strategies.personal import PersonalParameters

        return PersonalParameters(name, _chosen(name, settings)["personal"])

    return create


def _fedbuff(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.fedbuff import FedBuff

    return FedBuff(**_chosen("fedbuff", settings))


def _qfedavg(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.qfedavg import QFedAvg

    return QFedAvg(local_learning_rate=settings.learning_rate, **_chosen("qfedavg", settings))


def _krum(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.krum import MultiKrum

    return MultiKrum("krum", keep=1, **_chosen("krum", settings))


def _multikrum(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.krum import MultiKrum

    return MultiKrum("multikrum", **_chosen("multikrum", settings))


def _bulyan(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.bulyan import Bulyan

    return Bulyan(**_chosen("bulyan", settings))


def _trimmed_mean(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.coordinatewise import TrimmedMean

    return TrimmedMean(**_chosen("trimmedmean", settings))


def _median(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.coordinatewise import CoordinateMedian

    return CoordinateMedian()


def _geometric_median(settings: CampaignChoices) -> Strategy:
    from skerry_server.federation.strategies.geometric_median import GeometricMedian

    return GeometricMedian(**_chosen("geometricmedian", settings))


#: Name to what makes the strategy of a campaign.
STRATEGIES: dict[str, Callable[[CampaignChoices], Strategy]] = {
    "fedavg": _fedavg,
    "fedprox": _fedprox,
    "fedavgm": _fedavgm,
    "fedadam": _adaptive("fedadam"),
    "fedyogi": _adaptive("fedyogi"),
    "fedadagrad": _adaptive("fedadagrad"),
    "scaffold": _scaffold,
    "fedbn": _personal("fedbn"),
    "fedper": _personal("fedper"),
    "fedbuff": _fedbuff,
    "qfedavg": _qfedavg,
    "krum": _krum,
    "multikrum": _multikrum,
    "bulyan": _bulyan,
    "trimmedmean": _trimmed_mean,
    "median": _median,
    "geometricmedian": _geometric_median,
}


#: Strategies that Flower computes, whose objects cost its import; they are defined for any number of updates.
_FLOWERS = frozenset({"fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"})


def least_updates(name: str, settings: CampaignChoices) -> int:
    """Updates that a round of that strategy needs, whatever the campaign's quorum."""
    return 1 if name in _FLOWERS else create_strategy(name, settings).minimum_updates


def check_strategy(name: str) -> str:
    """Return ``name`` if there is such a strategy; raises InvalidRequestError."""
    if name not in STRATEGIES:
        raise InvalidRequestError("strategy", expected=f"one of {', '.join(STRATEGIES)}", got=name)
    return name


def create_strategy(name: str, settings: CampaignChoices) -> Strategy:
    """The strategy of a campaign; raises InvalidRequestError for an unknown name or a wrong setting."""
    return STRATEGIES[check_strategy(name)](settings)
