"""Three of ten devices attack, on real data: what each strategy makes of it.

Bulyan is proven for less than a quarter of attackers, so it has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unit.federation import poisoned_fleet
from unit.federation.poisoned_fleet import ATTACKS, Fleet, accuracy, backdoor_success, learn, strategy

ROBUST: dict[str, tuple[dict[str, Any], int]] = {
    "trimmedmean": ({"trim": 0.3}, 3),
    "median": ({}, 3),
    "geometricmedian": ({}, 3),
    "krum": ({"byzantine": 0.3}, 3),
    "multikrum": ({"byzantine": 3}, 3),
    "bulyan": ({"byzantine": 1}, 1),
}


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return poisoned_fleet.digits_fleet()


@pytest.fixture(scope="module")
def clean(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Accuracy of FedAvg without attackers."""
    model = learn(fleet, strategy("fedavg"), None, 0, tmp_path_factory.mktemp("scratch"))
    assert backdoor_success(model, fleet.test) < 0.02
    return accuracy(model, fleet.test)


def test_without_attackers_the_digits_are_learned(clean: float) -> None:
    assert clean > 0.93


@pytest.mark.parametrize("attack", ATTACKS)
def test_fedavg_fails(fleet: Fleet, clean: float, attack: str, tmp_path: Path) -> None:
    model = learn(fleet, strategy("fedavg"), ATTACKS[attack], 3, tmp_path)
    if attack == "backdoor":  # it is meant to stay unseen
        assert accuracy(model, fleet.test) > clean - 0.03
        assert backdoor_success(model, fleet.test) > 0.9
    else:
        assert accuracy(model, fleet.test) < clean - 0.5


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ROBUST)
def test_robust_strategies_keep_within_three_points(
    fleet: Fleet, clean: float, name: str, attack: str, tmp_path: Path
) -> None:
    settings, attackers = ROBUST[name]
    model = learn(fleet, strategy(name, **settings), ATTACKS[attack], attackers, tmp_path)
    assert accuracy(model, fleet.test) >= clean - 0.03
    assert backdoor_success(model, fleet.test) < 0.15
