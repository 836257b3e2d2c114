"""When a campaign has had enough: rounds, bytes, minutes, energy, or no improvement. Pure: no I/O.

Everything is counted from committed rounds, so a process that takes over counts the same. A round is not begun when one
as dear as the dearest so far would not fit into a budget any more; what a single round may cost is bounded by its
deadline and its devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.federation.settings import CampaignSettings

#: What a device is taken to draw while it trains (watts): a single-board computer with one busy core, above idle.
TRAINING_WATTS: Final = 3.0
#: What moving a byte is taken to cost the device (joules): Wi-Fi, of the order of 100 nJ a bit.
JOULES_PER_BYTE: Final = 8e-7

#: Metrics of a round that budgets are counted in.
BYTES_DOWN, BYTES_UP, ENERGY = "bytes_down", "bytes_up", "energy_wh"


@dataclass(frozen=True)
class Spent:
    """What committed rounds have cost.

    Attributes:
        bytes: Both directions.
        minutes: Duration of the rounds.
        energy_wh: Estimate of the devices' energy (watt-hours).
    """

    bytes: float
    minutes: float
    energy_wh: float


def energy_wh(training_seconds: float, moved_bytes: float) -> float:
    """Estimated energy of devices that trained and moved bytes (watt-hours)."""
    return (training_seconds * TRAINING_WATTS + moved_bytes * JOULES_PER_BYTE) / 3600.0


def cost(record: RoundRecord) -> Spent:
    """What one round cost."""
    moved = record.metrics.get(BYTES_DOWN, 0.0) + record.metrics.get(BYTES_UP, 0.0)
    return Spent(moved, record.seconds / 60.0, record.metrics.get(ENERGY, 0.0))


def spent(rounds: Sequence[RoundRecord]) -> Spent:
    """What all of them cost."""
    costs = [cost(record) for record in rounds]
    return Spent(
        sum(each.bytes for each in costs), sum(each.minutes for each in costs), sum(each.energy_wh for each in costs)
    )


def ending(settings: CampaignSettings, rounds: Sequence[RoundRecord], figures: Sequence[tuple[int, float]]) -> str:
    """Why no further round begins; empty when one does.

    Args:
        settings: Of the campaign.
        rounds: Committed ones, in order.
        figures: Round number and the figure that decides (higher is better), of the rounds that have one, in order.
    """
    if len(rounds) >= settings.rounds:
        return f"all {settings.rounds} rounds are done"
    if not rounds:
        return ""
    total, costs = spent(rounds), [cost(record) for record in rounds]
    for limit, name, used, dearest in (
        (settings.maximum_bytes, "bytes", total.bytes, max(each.bytes for each in costs)),
        (settings.maximum_minutes, "minutes", total.minutes, max(each.minutes for each in costs)),
        (settings.maximum_energy_wh, "watt-hours", total.energy_wh, max(each.energy_wh for each in costs)),
    ):
        if limit and used + dearest > limit:
            return f"the budget of {limit:g} {name} does not last for another round: {used:.4g} are spent"
    if settings.early_stopping_rounds and figures:
        best = max(figures, key=lambda pair: (pair[1], -pair[0]))
        waited = rounds[-1].number - best[0]
        if waited >= settings.early_stopping_rounds and figures[-1][0] != best[0]:
            return f"no improvement over round {best[0]} for {waited} rounds"
    return ""
