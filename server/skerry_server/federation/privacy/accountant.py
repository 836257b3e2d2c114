"""How much privacy a campaign has spent: (epsilon, delta) of Gaussian rounds, client-level.

Without sampling, rounds of Gaussian noise compose exactly: ``n`` rounds with multiplier ``z`` are one Gaussian
mechanism with ``mu = sqrt(n) / z`` (Dong, Roth and Su, arXiv 1905.02383, corollary 3.3), whose smallest epsilon is
known (Balle and Wang, arXiv 1805.06530, theorem 8). No numerical accountant is tighter; "rdp" is kept because other
platforms quote it.

Sampling makes a round cheaper only if it is the sampling of the theorem. A round that asks a fixed number of devices,
or whoever is awake, is not Poisson sampling, so nothing is claimed for it: every round counts as if every device took
part. Only ``sampling: poisson``, where each device is drawn by itself from a cryptographic source
(:meth:`~skerry_server.federation.privacy.plan.PrivacyPlan.draw`), is accounted as such, by Google's ``dp-accounting``.
That library is imported when it is needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass
from typing import Any

from skerry_server.federation.privacy.settings import PrivacySettings

#: Relative width at which the search for a noise multiplier ends.
_TOLERANCE = 1e-4
_SAMPLED_TOLERANCE = 1e-3
#: As large as one that may be asked for (settings), which the grid can carry.
_LARGEST_MULTIPLIER = 1e4
#: Ten times the library's own: a tenth of the time (0.3 s for 1000 rounds); epsilon is 0.01 % larger, never smaller.
_PLD_INTERVAL = 1e-3
#: Below 2 the library's series does not always converge; every set of orders is valid.
_RDP_ORDERS = [2 + step / 10 for step in range(80)] + [*map(float, range(10, 129)), 256.0, 512.0, 1024.0]


@dataclass(frozen=True)
class Spending:
    """Rounds that were released.

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of the sensitivity, above 0.
        rounds: How many, at least 0.
        sampling_probability: Of Poisson sampling; 1 is no sampling.
    """

    noise_multiplier: float
    rounds: int
    sampling_probability: float = 1.0


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Smallest delta of a Gaussian mechanism with sensitivity/std = ``mu`` > 0 at ``epsilon`` >= 0."""
    from scipy.special import log_ndtr

    first, second = float(log_ndtr(mu / 2 - epsilon / mu)), float(log_ndtr(-mu / 2 - epsilon / mu))
    gap = epsilon + second - first  # below 0
    return math.exp(first) * -math.expm1(min(0.0, gap))


def exact_epsilon(spending: Spending, delta: float) -> float:
    """Smallest epsilon of rounds without sampling; ValueError with sampling."""
    if spending.sampling_probability != 1.0:
        raise ValueError("the exact accountant knows no sampling")
    if not spending.rounds:
        return 0.0
    mu = math.sqrt(spending.rounds) / spending.noise_multiplier
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def rdp_epsilon(spending: Spending, delta: float) -> float:
    """Epsilon by Renyi divergences: Mironov (arXiv 1702.07476), converted by Canonne, Kamath and Steinke.

    The conversion is proposition 12 of arXiv 2004.00010; the best order is searched, not taken from a list.
    """
    if spending.sampling_probability != 1.0:
        return _library_epsilon("rdp", spending, delta)
    if not spending.rounds:
        return 0.0
    slope = spending.rounds / (2 * spending.noise_multiplier**2)

    def epsilon(order: float) -> float:
        return order * slope + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)

    orders = [1 + math.exp(step / 50) for step in range(-350, 700)]
    return max(0.0, min(map(epsilon, orders)))


def pld_epsilon(spending: Spending, delta: float) -> float:
    """Epsilon by privacy loss distributions (dp-accounting, pessimistic); the exact one without sampling."""
    if spending.sampling_probability == 1.0:
        return exact_epsilon(spending, delta)
    return _library_epsilon("pld", spending, delta)


@functools.lru_cache(maxsize=1024)  # a round asks for what is spent and for what the next one would make of it
def _library_epsilon(accountant: str, spending: Spending, delta: float) -> float:
    if not spending.rounds:
        return 0.0
    import dp_accounting

    event: Any = dp_accounting.PoissonSampledDpEvent(
        spending.sampling_probability, dp_accounting.GaussianDpEvent(spending.noise_multiplier)
    )
    library: Any
    if accountant == "pld":
        from dp_accounting.pld import PLDAccountant

        library = PLDAccountant(value_discretization_interval=_PLD_INTERVAL)
    else:
        from dp_accounting.rdp import RdpAccountant

        library = RdpAccountant(_RDP_ORDERS)
    library.compose(event, spending.rounds)
    return float(library.get_epsilon(delta))


def composed_epsilon(spendings: Collection[Spending], delta: float) -> float:
    """Epsilon of several campaigns together, for a device that took part in each: never more than their sum.

    Gaussian rounds without sampling compose exactly, ``mu**2`` adds up (arXiv 1905.02383, corollary 3.3); as soon as
    one campaign samples, all of them are composed as privacy loss distributions by dp-accounting.
    """
    rounds = tuple(sorted((each for each in spendings if each.rounds), key=astuple))
    if not rounds:
        return 0.0
    if all(each.sampling_probability == 1.0 for each in rounds):
        squared = sum(each.rounds / each.noise_multiplier**2 for each in rounds)
        return exact_epsilon(Spending(1 / math.sqrt(squared), 1), delta)
    return _library_composed(rounds, delta)


@functools.lru_cache(maxsize=256)  # a page that is open asks again and again
def _library_composed(spendings: tuple[Spending, ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant: Any = PLDAccountant(value_discretization_interval=_PLD_INTERVAL)
    for each in spendings:
        event: Any = dp_accounting.GaussianDpEvent(each.noise_multiplier)
        if each.sampling_probability != 1.0:
            event = dp_accounting.PoissonSampledDpEvent(each.sampling_probability, event)
        accountant.compose(event, each.rounds)
    return float(accountant.get_epsilon(delta))


#: Name to what computes epsilon at delta.
ACCOUNTANTS: dict[str, Callable[[Spending, float], float]] = {
    "exact": exact_epsilon,
    "rdp": rdp_epsilon,
    "pld": pld_epsilon,
}


def noise_multiplier_for(settings: PrivacySettings, rounds: int) -> float:
    """The smallest multiplier with which ``rounds`` rounds stay within ``settings.target_epsilon``.

    Found by bisection to 1e-4 of itself (1e-3 with sampling, where each look costs a fraction of a second), from above:
    the budget is never passed by what is returned.

    Raises:
        ValueError: No multiplier up to 1e4 is enough.
    """
    account = ACCOUNTANTS[settings.accountant]
    tolerance = _TOLERANCE if settings.sampling_probability == 1.0 else _SAMPLED_TOLERANCE

    def enough(multiplier: float) -> bool:
        spending = Spending(multiplier, rounds, settings.sampling_probability)
        return account(spending, settings.delta) <= settings.target_epsilon

    high = 1.0
    while not enough(high):
        high *= 2
        if high > _LARGEST_MULTIPLIER:
            raise ValueError(f"no noise keeps {rounds} rounds within epsilon {settings.target_epsilon:g}")
    low = high / 2
    while low > 1e-3 and enough(low):
        low, high = low / 2, low
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
