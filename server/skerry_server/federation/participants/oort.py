"""Which devices a round asks: at random, or by what their updates are worth (Oort). Pure: no clock, no store.

Oort (Lai et al., OSDI 2021, arXiv 2010.06081) asks those devices whose samples the model still gets wrong and which are
not too slow. With B the samples of a device and L(k) the loss of the model that it received:

* statistical utility (paper, section 4.2):  ``|B| * sqrt(mean over B of L(k)^2)``;
* a device that takes t seconds when T are preferred loses the factor ``(T / t)^alpha`` if t > T (equation 1);
* utilities are clipped to the 95th percentile, so that one outlier is not always chosen (section 4.4);
* an update is less certain the longer ago it was: ``sqrt(0.1 * ln(R) / r)`` is added in units of the clipped range, R
  the round and r the round of its newest update (temporal uncertainty, algorithm 1);
* a share epsilon of the devices are ones that never trained, the fastest first when their speed is known (exploration);
* devices whose clipped utility is at least :data:`CUT_OFF` of the k-th one are drawn, by their utility;
* fairness f in 0 to 1 mixes utility with how seldom a device was selected (section 4.5): ``(1 - f) * utility + f *
  rounds not taken part in``, both in units of their range.

Every choice is drawn from ``numpy.random.default_rng([seed, round])``: the same round of the same campaign chooses the
same devices again, so a resumed round goes on with those that it had asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

#: Devices within this share of the k-th utility may be drawn (the paper's c).
CUT_OFF: Final = 0.95
#: Utilities above this quantile count as it.
CLIP_QUANTILE: Final = 0.95
#: Which quantile of the known durations is preferred.
PREFERRED_QUANTILE: Final = 0.5
#: Strength of the temporal uncertainty (algorithm 1 of the paper).
UNCERTAINTY: Final = 0.1


@dataclass(frozen=True)
class Record:
    """What a campaign knows of a device that takes part.

    Attributes:
        device_id: Its name.
        utility: Statistical utility of its newest update; negative: it has none.
        seconds: How long that took; negative: not known.
        rounds: Rounds that its update counted in.
        last_round: The newest of them; 0 for none.
    """

    device_id: str
    utility: float = -1.0
    seconds: float = -1.0
    rounds: int = 0
    last_round: int = 0


@dataclass(frozen=True)
class SelectionRules:
    """How a round's devices are chosen.

    Attributes:
        count: How many are wanted.
        seed: Of the campaign.
        oort: By utility; else uniformly.
        exploration: Share of ``count`` for devices without a utility, 0 to 1.
        slow_penalty: The exponent alpha.
        fairness: The weight f, 0 to 1.
        participation_cap: Devices with so many rounds are not chosen; 0: no cap.
    """

    count: int
    seed: int
    oort: bool = False
    exploration: float = 0.2
    slow_penalty: float = 2.0
    fairness: float = 0.0
    participation_cap: int = 0


def statistical_utility(examples: int, mean_squared_loss: float) -> float:
    """``|B| * sqrt(mean squared loss)``; -1 when the loss was not measured (negative or not finite)."""
    if mean_squared_loss < 0 or not math.isfinite(mean_squared_loss):
        return -1.0
    return examples * math.sqrt(mean_squared_loss)


def select(records: Sequence[Record], rules: SelectionRules, *, round_number: int) -> tuple[str, ...]:
    """The devices of a round, at most ``rules.count``, in alphabetical order.

    Args:
        records: Devices that can be asked now; the order does not matter.
        rules: See there.
        round_number: From 1.

    Raises:
        ValueError: The round is below 1, or a device is named twice.
    """
    if round_number < 1:
        raise ValueError(f"rounds count from 1, got {round_number}")
    ordered = sorted(records, key=lambda record: record.device_id)
    if len({record.device_id for record in ordered}) < len(ordered):
        raise ValueError("a device is named twice")
    cap = rules.participation_cap
    able = [record for record in ordered if not cap or record.rounds < cap]
    random = np.random.default_rng([rules.seed, round_number])
    if len(able) <= rules.count:
        chosen = able
    elif rules.oort:
        chosen = _by_utility(able, rules, round_number, random)
    else:
        chosen = _at_random(able, rules, random)
    return tuple(sorted(record.device_id for record in chosen))


def _at_random(able: list[Record], rules: SelectionRules, random: np.random.Generator) -> list[Record]:
    """Uniformly; with fairness the share f of the places goes to those who took part least, ties at random."""
    shuffled = [able[index] for index in random.permutation(len(able))]
    seldom = round(rules.fairness * rules.count)
    first = sorted(shuffled, key=lambda record: record.rounds)[:seldom]
    taken = {record.device_id for record in first}
    rest = [record for record in shuffled if record.device_id not in taken]
    return first + rest[: rules.count - len(first)]


def _by_utility(
    able: list[Record], rules: SelectionRules, round_number: int, random: np.random.Generator
) -> list[Record]:
    known = [record for record in able if record.utility >= 0]
    unknown = [record for record in able if record.utility < 0]
    exploring = min(len(unknown), max(math.ceil(rules.exploration * rules.count), rules.count - len(known)))
    exploiting = rules.count - exploring
    chosen = _explore(unknown, exploring, random)
    if exploiting == 0:
        return chosen
    scores = utilities(known, rules, round_number=round_number)
    threshold = CUT_OFF * float(np.sort(scores)[-exploiting])
    pool = np.flatnonzero(scores >= threshold)
    weights = scores[pool] + 1e-12  # a device that has nothing to learn from can still be drawn
    drawn = random.choice(pool, size=exploiting, replace=False, p=weights / weights.sum())
    return chosen + [known[index] for index in drawn]


def _explore(unknown: list[Record], count: int, random: np.random.Generator) -> list[Record]:
    """Devices without a utility: those whose speed is known by it, the others at random behind them."""
    shuffled = [unknown[index] for index in random.permutation(len(unknown))]
    return sorted(shuffled, key=lambda record: record.seconds if record.seconds > 0 else math.inf)[:count]


def utilities(records: Sequence[Record], rules: SelectionRules, *, round_number: int) -> np.ndarray:
    """Utility of each device, float64 [devices], at least 0; the module says how."""
    raw = np.array([record.utility for record in records], np.float64)
    clipped = np.minimum(raw, np.quantile(raw, CLIP_QUANTILE, method="lower")) if len(raw) else raw
    span = float(clipped.max() - clipped.min()) if len(raw) else 0.0
    last = np.array([max(1, record.last_round) for record in records], np.float64)
    uncertainty = np.sqrt(UNCERTAINTY * math.log(max(1, round_number)) / last)
    scores = clipped + uncertainty * (span if span > 0 else 1.0)
    seconds = np.array([record.seconds for record in records], np.float64)
    measured = seconds > 0
    if measured.any():
        preferred = float(np.quantile(seconds[measured], PREFERRED_QUANTILE, method="lower"))
        slow = measured & (seconds > preferred)
        scores[slow] *= (preferred / seconds[slow]) ** rules.slow_penalty
    if rules.fairness:
        rounds = np.array([record.rounds for record in records], np.float64)
        seldom = rounds.max() - rounds
        scores = (1 - rules.fairness) * _unit(scores) + rules.fairness * _unit(seldom)
    return scores


def _unit(values: np.ndarray) -> np.ndarray:
    """Values over the largest of them; zeros stay zeros."""
    highest = float(values.max(initial=0.0))
    return values / highest if highest > 0 else values
