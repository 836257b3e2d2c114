"""What may be chosen about each strategy (``strategy_settings`` of a campaign), with bounds and defaults. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from skerry_server.errors import InvalidRequestError

#: Most patterns of personal parameters, and characters of each.
PATTERNS, PATTERN_CHARACTERS = 64, 120


class CampaignChoices(Protocol):
    """What a strategy reads of :class:`skerry_server.federation.settings.CampaignSettings`."""

    @property
    def learning_rate(self) -> float:
        """Of local SGD."""
        ...

    @property
    def proximal_mu(self) -> float:
        """Of FedProx."""
        ...

    @property
    def strategy_settings(self) -> Mapping[str, Any]:
        """As :func:`check_strategy_settings` returned them."""
        ...


@dataclass(frozen=True)
class Number:
    """A number from ``lowest`` to ``highest``; ``above``: not ``lowest`` itself, ``below``: not ``highest`` itself."""

    default: float
    lowest: float
    highest: float
    integer: bool = False
    above: bool = False
    below: bool = False

    def check(self, field: str, value: object) -> float | int:
        """The number; raises InvalidRequestError."""
        low = f"{'above' if self.above else 'from'} {self.lowest:g}"
        high = f"{'below' if self.below else 'to'} {self.highest:g}"
        kind = "an integer" if self.integer else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequestError(field, expected=f"{kind} {low} {high}", got=value)
        right = (
            self.lowest <= value <= self.highest
            and not (self.above and value == self.lowest)
            and not (self.below and value == self.highest)
            and not (self.integer and value != int(value))
        )
        if not right:
            raise InvalidRequestError(field, expected=f"{kind} {low} {high}", got=value)
        return int(value) if self.integer else float(value)


@dataclass(frozen=True)
class Attackers:
    """Byzantine devices to withstand: a share of a round's updates below ``below``, or a count from 1."""

    default: float
    below: float

    def check(self, field: str, value: object) -> float | int:
        """The share or the count; raises InvalidRequestError."""
        expected = f"a share from 0 to below {self.below:g}, or a count from 1 to 10000"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequestError(field, expected=expected, got=value)
        if 0 <= value < self.below:
            return float(value)
        if 1 <= value <= 10_000 and value == int(value):
            return int(value)
        raise InvalidRequestError(field, expected=expected, got=value)


@dataclass(frozen=True)
class Patterns:
    """Shell patterns of parameter names, as a list or one text separated by commas; none: what the strategy finds."""

    default: tuple[str, ...] = ()

    def check(self, field: str, value: object) -> list[str]:
        """The patterns; raises InvalidRequestError."""
        expected = f"at most {PATTERNS} patterns of 1 to {PATTERN_CHARACTERS} characters without spaces"
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple) or len(value) > PATTERNS:
            raise InvalidRequestError(field, expected=expected, got=value)
        for pattern in value:
            if (
                not isinstance(pattern, str)
                or not 1 <= len(pattern) <= PATTERN_CHARACTERS
                or pattern.split() != [pattern]
            ):
                raise InvalidRequestError(field, expected=expected, got=pattern)
        return list(value)


Field = Number | Attackers | Patterns

_SERVER_RATE = Number(1.0, 0.0, 100.0, above=True)
_ADAPTIVE: dict[str, Field] = {
    "server_learning_rate": Number(0.01, 0.0, 100.0, above=True),
    "tau": Number(1e-3, 0.0, 1.0, above=True),
}
_MOMENTS: dict[str, Field] = {
    **_ADAPTIVE,
    "beta_1": Number(0.9, 0.0, 1.0, below=True),
    "beta_2": Number(0.99, 0.0, 1.0, below=True),
}

#: Strategy to its fields.
FIELDS: dict[str, dict[str, Field]] = {
    "fedavg": {},
    "fedprox": {},
    "fedavgm": {"momentum": Number(0.9, 0.0, 1.0, below=True), "server_learning_rate": _SERVER_RATE},
    "fedadam": _MOMENTS,
    "fedyogi": _MOMENTS,
    "fedadagrad": _ADAPTIVE,
    "scaffold": {"server_learning_rate": _SERVER_RATE},
    "fedbn": {"personal": Patterns()},
    "fedper": {"personal": Patterns()},
    "fedbuff": {
        "buffer": Number(10, 1, 10_000, integer=True),
        "server_learning_rate": _SERVER_RATE,
        "staleness_exponent": Number(0.5, 0.0, 10.0),
        "maximum_staleness": Number(20, 0, 10_000, integer=True),
    },
    "qfedavg": {"q": Number(0.1, 0.0, 100.0)},
    "krum": {"byzantine": Attackers(0.3, 0.5)},
    "multikrum": {"byzantine": Attackers(0.3, 0.5), "keep": Number(0, 0, 10_000, integer=True)},
    "bulyan": {"byzantine": Attackers(0.2, 0.25)},
    "trimmedmean": {"trim": Number(0.2, 0.0, 0.5, above=True, below=True)},
    "median": {},
    "geometricmedian": {
        "smoothing": Number(1e-6, 0.0, 1.0, above=True),
        "iterations": Number(100, 1, 1_000, integer=True),
    },
}


def check_strategy_settings(name: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Check a request's ``strategy_settings``; what it leaves out gets its default.

    Args:
        name: An existing strategy; one that was added to ``STRATEGIES`` without an entry in :data:`FIELDS` has none.
        given: Field to value.

    Returns:
        Field to number or list of patterns: JSON types, complete.

    Raises:
        InvalidRequestError: An unknown field, a wrong type or a value out of bounds; ``field`` names it.
    """
    known = FIELDS.get(name, {})
    for field in given:
        if field not in known:
            expected = f"one of {', '.join(known)}" if known else f"nothing: {name} has no settings"
            raise InvalidRequestError(f"settings.strategy_settings.{field}", expected=expected, got=field)
    return {
        field: rule.check(f"settings.strategy_settings.{field}", given.get(field, rule.default))
        for field, rule in known.items()
    }
