"""Selection of a round's devices: uniform and by utility, with figures computed by hand. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_server.federation.participants.oort import Record, SelectionRules, select, statistical_utility, utilities

UNIFORM = SelectionRules(count=3, seed=1)
OORT = SelectionRules(count=2, seed=1, oort=True, exploration=0.0, slow_penalty=2.0)


def names(count: int) -> list[Record]:
    return [Record(f"d{index:02d}") for index in range(count)]


def test_statistical_utility_is_that_of_the_paper() -> None:
    # |B| = 50 samples, mean squared loss 0.64: 50 * 0.8.
    assert statistical_utility(50, 0.64) == pytest.approx(40.0)
    assert statistical_utility(50, 0.0) == 0.0
    for unmeasured in (-1.0, math.nan, math.inf):
        assert statistical_utility(50, unmeasured) == -1.0


def test_a_device_that_is_twice_as_slow_as_preferred_counts_a_quarter() -> None:
    records = [
        Record("a", 8.0, 1.0, last_round=1),
        Record("b", 8.0, 1.0, last_round=1),
        Record("c", 8.0, 2.0, last_round=1),
    ]
    # Median duration 1 s; (1 / 2)^2 = 0.25; ln(1) = 0, so nothing is uncertain in round 1.
    assert utilities(records, OORT, round_number=1) == pytest.approx([8.0, 8.0, 2.0])
    assert utilities(records, replace(OORT, slow_penalty=0.0), round_number=1) == pytest.approx([8.0, 8.0, 8.0])


def test_an_old_update_is_worth_a_second_look() -> None:
    records = [Record("old", 4.0, last_round=1), Record("new", 6.0, last_round=9)]
    # Clipped at the lower 95th percentile, 4: both 4, range 0 counts as 1; + sqrt(0.1 * ln 10 / r).
    assert utilities(records, OORT, round_number=10) == pytest.approx(
        [4.0 + math.sqrt(0.1 * math.log(10)), 4.0 + math.sqrt(0.1 * math.log(10) / 9)]
    )


def test_an_outlier_is_clipped() -> None:
    records = [Record(f"d{index:02d}", 1.0 + index, last_round=1) for index in range(20)] + [
        Record("outlier", 1e9, last_round=1)
    ]
    # 21 utilities: the lower 95th percentile is the one at index 19 of 20, which is 20.
    assert utilities(records, OORT, round_number=1).max() == pytest.approx(20.0)


def test_fairness_prefers_those_who_took_part_least() -> None:
    records = [Record("a", 10.0, rounds=4, last_round=4), Record("b", 5.0, rounds=0, last_round=4)]
    rules = replace(OORT, fairness=1.0)
    assert utilities(records, rules, round_number=1) == pytest.approx([0.0, 1.0])
    # Half and half. Utilities are clipped to 5, so 1 and 1; rounds not taken part in 0 and 4, so 0 and 1.
    assert utilities(records, replace(OORT, fairness=0.5), round_number=1) == pytest.approx([0.5, 1.0])


def test_only_those_near_the_best_are_drawn() -> None:
    records = [
        Record(name, value, last_round=1) for name, value in zip("abcdefgh", [9, 9, 9, 1, 1, 1, 1, 1], strict=True)
    ]
    chosen = Counter(name for round_number in range(1, 60) for name in select(records, OORT, round_number=round_number))
    assert set(chosen) == {"a", "b", "c"}
    assert all(count > 20 for count in chosen.values())


def test_exploration_takes_its_share_from_the_unknown_the_fast_first() -> None:
    known = [Record(f"k{index}", 5.0, 1.0, last_round=1) for index in range(8)]
    unknown = [Record("slow", seconds=9.0), Record("fast", seconds=2.0), Record("new-1"), Record("new-2")]
    rules = replace(OORT, count=4, exploration=0.5)
    for round_number in range(1, 10):
        chosen = select(known + unknown, rules, round_number=round_number)
        assert {"slow", "fast"} <= set(chosen)
        assert sum(name.startswith("k") for name in chosen) == 2


def test_in_the_first_round_nobody_is_known_and_all_places_are_filled() -> None:
    assert len(select(names(10), replace(OORT, count=4, exploration=0.2), round_number=1)) == 4


def test_too_few_unknown_leave_their_places_to_the_known() -> None:
    records = [Record(f"k{index}", 5.0, last_round=1) for index in range(6)] + [Record("new")]
    chosen = select(records, replace(OORT, count=4, exploration=0.9), round_number=2)
    assert len(chosen) == 4
    assert "new" in chosen


def test_a_cap_keeps_devices_out_whatever_they_are_worth() -> None:
    records = [
        Record("a", 100.0, rounds=3, last_round=3),
        Record("b", 1.0, rounds=2, last_round=2),
        Record("c", rounds=3),
    ]
    rules = replace(OORT, participation_cap=3)
    assert select(records, rules, round_number=4) == ("b",)
    assert select(records, replace(rules, oort=False), round_number=4) == ("b",)
    assert set(select(records, replace(rules, participation_cap=0, count=3), round_number=4)) == {"a", "b", "c"}


def test_uniform_selection_gives_everybody_the_same_chance() -> None:
    chosen = Counter(name for number in range(1, 1001) for name in select(names(10), UNIFORM, round_number=number))
    # 1000 rounds, 3 of 10: 300 each, standard deviation sqrt(1000 * 0.3 * 0.7) = 14.5.
    assert len(chosen) == 10
    assert all(abs(count - 300) < 5 * 14.5 for count in chosen.values())


def test_uniform_selection_with_fairness_goes_round() -> None:
    rounds: Counter[str] = Counter()
    for number in range(1, 11):
        records = [Record(record.device_id, rounds=rounds[record.device_id]) for record in names(10)]
        rounds.update(select(records, replace(UNIFORM, fairness=1.0), round_number=number))
    assert set(rounds.values()) == {3}


@pytest.mark.parametrize("oort", [False, True])
def test_the_same_round_chooses_the_same_devices_in_any_order(oort: bool) -> None:
    random = np.random.default_rng(3)
    records = [Record(f"d{index}", 1.0 + 0.01 * float(random.random()), last_round=1) for index in range(30)]
    rules = SelectionRules(count=7, seed=5, oort=oort)
    first = select(records, rules, round_number=3)
    assert select(records[::-1], rules, round_number=3) == first
    others = {select(records, rules, round_number=number) for number in range(4, 24)}
    assert others - {first}
    assert {select(records, replace(rules, seed=seed), round_number=3) for seed in range(20)} - {first}


@given(
    values=st.lists(st.tuples(st.floats(-1, 1e12), st.floats(-1, 1e6), st.integers(0, 50)), max_size=40),
    count=st.integers(0, 45),
    oort=st.booleans(),
    exploration=st.floats(0, 1),
    fairness=st.floats(0, 1),
    cap=st.integers(0, 50),
    round_number=st.integers(1, 1000),
)
def test_whatever_is_known_the_places_are_filled_once(
    values: list[tuple[float, float, int]],
    count: int,
    oort: bool,
    exploration: float,
    fairness: float,
    cap: int,
    round_number: int,
) -> None:
    records = [
        Record(f"d{index}", utility, seconds, rounds, min(rounds, round_number))
        for index, (utility, seconds, rounds) in enumerate(values)
    ]
    rules = SelectionRules(
        count=count, seed=0, oort=oort, exploration=exploration, fairness=fairness, participation_cap=cap
    )
    chosen = select(records, rules, round_number=round_number)
    able = {record.device_id for record in records if not cap or record.rounds < cap}
    assert len(chosen) == len(set(chosen)) == min(count, len(able))
    assert set(chosen) <= able


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        select(names(3), UNIFORM, round_number=0)
    with pytest.raises(ValueError, match="named twice"):
        select([Record("a"), Record("a")], UNIFORM, round_number=1)
