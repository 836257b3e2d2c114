"""What may be chosen about a training run. Pure: no I/O, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from skerry_models.task import TrainingDefaults
from skerry_server.errors import InvalidRequestError

#: Step size over the epochs: half a cosine down to a twentieth, or always the same.
SCHEDULES = ("cosine", "constant")
#: Where to train; "auto" is CUDA if the machine has it.
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainingSettings:
    """Central training: mini-batch SGD with momentum.

    Attributes:
        epochs: Passes over the data, 1 to 10,000.
        batch_size: Rows per step, 1 to 65,536.
        learning_rate: Peak step size, above 0, at most 10.
        momentum: 0 to below 1.
        weight_decay: L2 penalty, 0 to 1.
        schedule: One of :data:`SCHEDULES`.
        seed: Of weights and order of rows, 0 to 2**31 - 1.
        device: One of :data:`DEVICES`.
        amp: Mixed precision; on CUDA only, ignored elsewhere.
        warm_start: ``release/<id>`` or ``campaign/<id>`` whose parameters are the start; empty for fresh weights.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float = 0.0
    schedule: str = "cosine"
    seed: int = 0
    device: str = "auto"
    amp: bool = True
    warm_start: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form; :func:`parse_settings` reads it back."""
        return asdict(self)


def parse_settings(defaults: TrainingDefaults, given: Mapping[str, object]) -> TrainingSettings:
    """Check a request's settings; what it leaves out comes from the task.

    Raises:
        InvalidRequestError: An unknown field, a wrong type, or a value out of range; ``field`` names it.
    """
    known = [field.name for field in fields(TrainingSettings)]
    for name in given:
        if name not in _CHECKS:
            raise InvalidRequestError(f"settings.{name}"[:80], expected=f"one of {', '.join(known)}", got=name)
    values: dict[str, Any] = {name: _CHECKS[name](f"settings.{name}", value) for name, value in given.items()}
    return TrainingSettings(**{**asdict(defaults), **values})


def _integer(minimum: int, maximum: int) -> Callable[[str, object], int]:
    def check(field: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise InvalidRequestError(field, expected=f"a whole number {minimum} to {maximum}", got=value)
        return value

    return check


def _number(
    minimum: float, maximum: float, *, above: bool = False, below: bool = False
) -> Callable[[str, object], float]:
    def check(field: str, value: object) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not isinstance(value, int | float) or not minimum <= value <= maximum:
            raise InvalidRequestError(field, expected=expected, got=value)
        if (above and value == minimum) or (below and value == maximum):
            raise InvalidRequestError(field, expected=expected, got=value)
        return float(value)

    expected = f"a number {'above' if above else 'from'} {minimum:g} {'to below' if below else 'to'} {maximum:g}"
    return check


def _choice(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(field: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InvalidRequestError(field, expected=f"one of {', '.join(choices)}", got=value)
        return value

    return check


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(field, expected="true or false", got=value)
    return value


def _warm_start(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(field, expected="a text", got=value)
    kind, _, identifier = value.partition("/")
    if value and (kind not in ("release", "campaign") or not identifier):
        raise InvalidRequestError(field, expected="release/<id> or campaign/<id>", got=value)
    return value


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "epochs": _integer(1, 10_000),
    "batch_size": _integer(1, 65_536),
    "learning_rate": _number(0.0, 10.0, above=True),
    "momentum": _number(0.0, 1.0, below=True),
    "weight_decay": _number(0.0, 1.0),
    "schedule": _choice(SCHEDULES),
    "seed": _integer(0, 2**31 - 1),
    "device": _choice(DEVICES),
    "amp": _flag,
    "warm_start": _warm_start,
}
