"""Federated evaluation of everybody's model against each device's own: the received model on a device's validation
split, and the same model with the parameters that stay on the device. Pure.

Every device counts once, whatever its number of samples: the question is for how many of them the personal form is
worth having. Gateways and secure sums tell no single device's figures, so they are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from skerry_server.federation.rounds.journal import JournalledUpdate

#: Devices that measured both.
DEVICES: Final = "personal_devices"
#: Mean over them of their own model's accuracy, and of everybody's.
ACCURACY: Final = "personal_accuracy"
GLOBAL_ACCURACY: Final = "personal_accuracy_global"
#: For how many the own model is right more often, and for how many less often.
GAINING: Final = "personal_gaining"
LOSING: Final = "personal_losing"
#: All of them, in the order in which they are shown.
FIGURES: Final = (DEVICES, GLOBAL_ACCURACY, ACCURACY, GAINING, LOSING)


def figures(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """The figures of (everybody's accuracy, the own accuracy) of each device; empty without any.

    >>> figures([(0.5, 0.75), (1.0, 1.0), (0.5, 0.25)])[GAINING]
    1.0
    """
    found = list(pairs)
    if not found:
        return {}
    return {
        DEVICES: float(len(found)),
        GLOBAL_ACCURACY: sum(pair[0] for pair in found) / len(found),
        ACCURACY: sum(pair[1] for pair in found) / len(found),
        GAINING: float(sum(own > everybody for everybody, own in found)),
        LOSING: float(sum(own < everybody for everybody, own in found)),
    }


def of_updates(updates: Sequence[JournalledUpdate]) -> dict[str, float]:
    """The figures of a round: everybody's model is the one that it started from."""
    return figures(
        (update.metrics["validation_accuracy"], update.metrics["personal_accuracy"])
        for update in updates
        if "personal_accuracy" in update.metrics
        and "devices" not in update.metrics
        and update.metrics.get("validation_examples", 0) > 0
    )


def of_metrics(metrics: Mapping[str, object]) -> dict[str, float]:
    """Those of the figures that a round, a campaign or a candidate has."""
    return {name: float(value) for name in FIGURES if isinstance(value := metrics.get(name), int | float)}
