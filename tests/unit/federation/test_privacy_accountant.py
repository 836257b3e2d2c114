"""Epsilon against the reference library, Flower's accountant and the definition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from flwr.serverapp import RdpAccountant as FlowerAccountant
from flwr.supercore.privacy_accounting import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, SamplingMethod
from scipy import integrate, stats

from skerry_contract.tensors import Array
from skerry_server.federation.privacy import Spending, noise_multiplier_for, parse_privacy
from skerry_server.federation.privacy.accountant import ACCOUNTANTS, exact_epsilon, gaussian_delta, rdp_epsilon

#: (noise multiplier, rounds, delta)
CASES = [(0.5, 1, 1e-5), (1.0, 1, 1e-6), (1.0, 50, 1e-5), (4.0, 100, 1e-5), (20.0, 1000, 1e-8), (50.0, 3, 1e-3)]


@pytest.mark.parametrize(("multiplier", "rounds", "delta"), CASES)
def test_the_exact_accountant_agrees_with_the_libraries_privacy_loss_distributions(
    multiplier: float, rounds: int, delta: float
) -> None:
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    library = PLDAccountant(value_discretization_interval=2e-3)
    library.compose(GaussianDpEvent(multiplier), rounds)
    # An absolute floor where epsilon is nearly 0: the library's grid has a width.
    assert exact_epsilon(Spending(multiplier, rounds), delta) == pytest.approx(
        library.get_epsilon(delta), rel=0.005, abs=1e-3
    )


@pytest.mark.parametrize(("multiplier", "rounds", "delta"), CASES)
def test_the_renyi_accountant_agrees_with_flowers(multiplier: float, rounds: int, delta: float) -> None:
    flower = FlowerAccountant(
        PrivacyConfig(
            target_delta=delta,
            population_size=100,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,
        ),
        # Its own orders end at 512 and start at 1.1: too coarse for the first and the last case.
        orders=tuple(1 + math.exp(step / 20) for step in range(-100, 240)),
    )
    flower.compose(GaussianPrivacyEvent(multiplier, 100, 100), rounds)
    ours = rdp_epsilon(Spending(multiplier, rounds), delta)
    assert ours == pytest.approx(flower.get_epsilon(delta), rel=0.01, abs=1e-4)
    assert exact_epsilon(Spending(multiplier, rounds), delta) <= ours


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_poisson_sampling_agrees_with_the_library(accountant: str) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    library = {"pld": PLDAccountant, "rdp": RdpAccountant}[accountant]()  # with its own grid and orders
    library.compose(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0)), 20)
    ours = ACCOUNTANTS[accountant](Spending(1.0, 20, 0.1), 1e-5)
    assert ours == pytest.approx(library.get_epsilon(1e-5), rel=0.01)
    assert ours < exact_epsilon(Spending(1.0, 20), 1e-5) / 3


def test_delta_is_the_hockey_stick_divergence_of_two_gaussians() -> None:
    for mu, epsilon in ((1.0, 0.5), (0.3, 1.0), (3.0, 4.0)):

        def excess(x: float, mu: float = mu, epsilon: float = epsilon) -> float:
            return float(max(0.0, stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x)))

        kink = epsilon / mu + mu / 2
        assert gaussian_delta(mu, epsilon) == pytest.approx(integrate.quad(excess, kink, kink + 40)[0], rel=1e-5)


def test_many_rounds_are_one_round_with_less_noise() -> None:
    assert exact_epsilon(Spending(8.0, 16), 1e-5) == pytest.approx(exact_epsilon(Spending(2.0, 1), 1e-5), rel=1e-9)


def test_nothing_spent_and_so_much_noise_that_delta_alone_is_enough() -> None:
    for account in ACCOUNTANTS.values():
        assert account(Spending(1.0, 0), 1e-5) == 0.0
    assert exact_epsilon(Spending(1e4, 1), 1e-3) == 0.0


def test_the_exact_accountant_claims_no_amplification() -> None:
    with pytest.raises(ValueError, match="no sampling"):
        exact_epsilon(Spending(1.0, 1, 0.5), 1e-5)


@pytest.mark.parametrize("accountant", ["exact", "rdp"])
@pytest.mark.parametrize(("target", "rounds"), [(0.5, 10), (8.0, 1), (3.0, 200), (100.0, 2)])
def test_the_multiplier_for_a_target_meets_it_and_a_smaller_one_does_not(
    accountant: str, target: float, rounds: int
) -> None:
    chosen = parse_privacy({"mode": "central", "target_epsilon": target, "accountant": accountant})
    multiplier = noise_multiplier_for(chosen, rounds)
    assert ACCOUNTANTS[accountant](Spending(multiplier, rounds), 1e-5) <= target
    assert ACCOUNTANTS[accountant](Spending(multiplier * 0.999, rounds), 1e-5) > target


def test_the_multiplier_with_sampling_meets_the_target() -> None:
    chosen = parse_privacy(
        {
            "mode": "central",
            "target_epsilon": 4.0,
            "sampling": "poisson",
            "sampling_probability": 0.1,
            "accountant": "rdp",
        }
    )
    multiplier = noise_multiplier_for(chosen, 20)
    assert 3.9 < rdp_epsilon(Spending(multiplier, 20, 0.1), 1e-5) <= 4.0
    assert multiplier < noise_multiplier_for(parse_privacy({"mode": "central", "target_epsilon": 4.0}), 20) / 3


def test_a_target_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise keeps 1000 rounds"):
        noise_multiplier_for(parse_privacy({"mode": "central", "target_epsilon": 1e-4, "delta": 1e-15}), 1000)


def test_an_attack_on_the_noised_sum_succeeds_no_more_often_than_epsilon_allows() -> None:
    """The real mechanism: whether one device took part is guessed from the sum, by the best test there is."""
    from skerry_server.federation.privacy import PrivateSum

    model = {"w": np.zeros(1)}
    device = {"w": np.ones(1)}
    multiplier, delta = 1.5, 1e-2
    epsilon = exact_epsilon(Spending(multiplier, 1), delta)

    def share_above(states: Sequence[Mapping[str, Array]], tries: int = 1_500) -> float:
        above = 0
        for attempt in range(tries):
            private = PrivateSum(
                model,
                clip_norm=1.0,
                noise_multiplier=multiplier,
                divisor=1,
                key=bytes(32),
                purpose=f"{len(states)}/{attempt}".encode(),
            )
            for state in [model, *states]:
                private.add(state)
            above += private.result()["w"][0] > epsilon * multiplier**2 + 0.5
        return above / tries

    with_device, without = share_above([device]), share_above([])
    slack = 4 * math.sqrt(0.05 / 1_500)
    assert without < with_device <= math.exp(epsilon) * without + delta + slack
    assert with_device == pytest.approx(stats.norm.sf(epsilon * multiplier**2 - 0.5, scale=multiplier), abs=slack)
