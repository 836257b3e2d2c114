"""What may be chosen about a campaign, and its bounds. Pure: no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from skerry_models.task import CampaignDefaults
from skerry_server.errors import InvalidRequestError


@dataclass(frozen=True)
class CampaignSettings:
    """One campaign.

    Attributes:
        rounds: Global rounds, 1 to 1000.
        local_epochs: Passes over a device's samples per round, 1 to 100.
        batch_size: Samples per local step, 1 to 1024.
        learning_rate: Of local SGD, above 0, at most 10.
        proximal_mu: Weight of the FedProx term, 0 to 1000; 0 for every strategy but "fedprox".
        minimum_devices: Devices that must accept before the first round, 1 to 10,000.
        minimum_samples: Labelled samples that a device must have, 2 to 1,000,000.
        quorum: Share of the accepted devices whose updates a round needs, above 0, at most 1.
        round_deadline_ms: Longest round, 1 s to 1 day (milliseconds).
        recruiting_deadline_ms: How long devices may answer, 1 s to 7 days (milliseconds).
        seed: Of the order of the samples on the devices, 0 to 2**31 - 1.
    """

    rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    proximal_mu: float
    minimum_devices: int = 2
    minimum_samples: int = 20
    quorum: float = 0.5
    round_deadline_ms: int = 120_000
    recruiting_deadline_ms: int = 60_000
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON form; :func:`load_settings` reads it back."""
        return asdict(self)

    def quorum_count(self, devices: int) -> int:
        """Updates that a round needs when ``devices`` take part, at least 1."""
        return max(1, math.ceil(self.quorum * devices - 1e-9))


#: Field to (lowest, highest); a lowest of 0.0 for learning_rate and quorum is excluded.
BOUNDS: dict[str, tuple[float, float]] = {
    "rounds": (1, 1_000),
    "local_epochs": (1, 100),
    "batch_size": (1, 1_024),
    "learning_rate": (0.0, 10.0),
    "proximal_mu": (0.0, 1_000.0),
    "minimum_devices": (1, 10_000),
    "minimum_samples": (2, 1_000_000),
    "quorum": (0.0, 1.0),
    "round_deadline_ms": (1_000, 86_400_000),
    "recruiting_deadline_ms": (1_000, 7 * 86_400_000),
    "seed": (0, (1 << 31) - 1),
}
#: Proximal weight of fedprox when neither the request nor the task gives one.
PROXIMAL_MU = 0.01
_POSITIVE = frozenset({"learning_rate", "quorum"})
_INTEGERS = frozenset(field.name for field in fields(CampaignSettings) if field.type == "int")


def parse_settings(
    defaults: CampaignDefaults, given: Mapping[str, object], *, strategy: str = "fedavg"
) -> CampaignSettings:
    """Check a request's settings; what it leaves out comes from the task.

    Args:
        defaults: Of the task.
        given: Name to value.
        strategy: "fedprox" has a proximal term, by default :data:`PROXIMAL_MU` when the task has none; others do not.

    Raises:
        InvalidRequestError: An unknown field, a wrong type, or a value out of range; ``field`` names it.
    """
    checked: dict[str, Any] = {}
    for name, value in given.items():
        field = f"settings.{name}"
        if name not in BOUNDS:
            raise InvalidRequestError(field, expected=f"one of {', '.join(BOUNDS)}", got=name)
        checked[name] = _number(field, name, value)
    settings = CampaignSettings(**{**asdict(defaults), **checked})
    if strategy == "fedprox" and "proximal_mu" not in checked:
        return replace(settings, proximal_mu=settings.proximal_mu or PROXIMAL_MU)
    if strategy != "fedprox" and checked.get("proximal_mu"):
        raise InvalidRequestError(
            "settings.proximal_mu", expected=f"0 with {strategy}; fedprox has the term", got=checked["proximal_mu"]
        )
    return settings if strategy == "fedprox" else replace(settings, proximal_mu=0.0)


def load_settings(document: Mapping[str, Any]) -> CampaignSettings:
    """Read what :meth:`CampaignSettings.as_dict` wrote."""
    return CampaignSettings(**document)


def _number(field: str, name: str, value: object) -> int | float:
    lowest, highest = BOUNDS[name]
    integer = name in _INTEGERS
    lower = f"above {lowest:g}" if name in _POSITIVE else f"from {lowest:g}"
    expected = f"{'an integer' if integer else 'a number'} {lower} to {highest:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(field, expected=expected, got=value)
    if not math.isfinite(value) or (integer and value != int(value)):
        raise InvalidRequestError(field, expected=expected, got=value)
    if not lowest <= value <= highest or (name in _POSITIVE and value <= lowest):
        raise InvalidRequestError(field, expected=expected, got=value)
    return int(value) if integer else float(value)
