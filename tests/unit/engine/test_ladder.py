"""The ladder: a table of scenarios by hand, every row of the machine, and what holds whatever happens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.engine.ladder import HOLD_S, LONGEST_HOLD_S, TRIAL_S, Ladder, LadderLimits, Look, pick
from skerry_agent.engine.ladder_machine import TABLE, Event, Move, Position, step
from skerry_agent.state_table import IllegalEventError

LIMITS = LadderLimits(deadline_us=10_000.0, temperature_c=80.0)
#: 99th percentiles when the release was loaded: 4 ms, 1 ms, 0.5 ms.
COSTS = [4_000.0, 1_000.0, 500.0]
FINE, LATE = Look(p99_us=4_000.0), Look(p99_us=12_000.0)
HOT, WARM, COOL = (Look(temperature_c=degrees) for degrees in (81.0, 76.0, 74.0))


@dataclass(frozen=True)
class Scenario:
    """Looks at their times, and the network that answers after each."""

    looks: tuple[tuple[float, Look], ...]
    rungs: tuple[int, ...]


SCENARIOS = {
    "nothing happens": Scenario(((0, FINE), (1, FINE), (99, FINE)), (0, 0, 0)),
    "too few requests say nothing": Scenario(((0, Look()), (1, Look())), (0, 0)),
    "late: one down, and held": Scenario(((0, LATE), (1, LATE), (4.9, LATE)), (1, 1, 1)),
    "still late when the hold is over: one more": Scenario(((0, LATE), (5, LATE), (6, LATE)), (1, 1, 2)),
    "the smallest stays however late it is": Scenario(
        ((0, LATE), (5, LATE), (6, LATE), (11, LATE), (12, LATE), (99, LATE)), (1, 1, 2, 2, 2, 2)
    ),
    # The larger one would need 4 x what this one needs: 1.7 ms leave room below 7 ms, 1.8 ms do not.
    "no room above: stays": Scenario(((0, LATE), (5, FINE), (6, Look(p99_us=1_800.0))), (1, 1, 1)),
    "room above: back": Scenario(((0, LATE), (5, FINE), (6, Look(p99_us=1_700.0))), (1, 1, 0)),
    "nobody asks: the times of loading count": Scenario(((0, LATE), (5, Look()), (6, Look())), (1, 1, 0)),
    "hot: down; warm is not cool yet": Scenario(((0, HOT), (5, WARM), (6, WARM), (7, COOL)), (1, 1, 1, 0)),
    "heat that nobody measures is none": Scenario(((0, Look(p99_us=4_000.0, temperature_c=None)),), (0,)),
    "saving: down at once, also from a trial, and no further": Scenario(
        ((0, Look(saving=True)), (1, Look(saving=True)), (6, Look(saving=True)), (99, Look(saving=True))), (1, 1, 1, 1)
    ),
    "saving ends: back after the hold": Scenario(((0, Look(saving=True)), (5, Look()), (6, Look())), (1, 1, 0)),
    "saving and late: further down": Scenario(
        ((0, Look(saving=True)), (5, LATE), (6, Look(p99_us=12_000.0, saving=True))), (1, 1, 2)
    ),
    "saving: back to the first small one, not to the large": Scenario(
        ((0, LATE), (5, LATE), (6, LATE), (11, Look(saving=True)), (12, Look(saving=True)), (50, Look(saving=True))),
        (1, 1, 2, 2, 1, 1),
    ),
    # 0 down, 5 hold over, 6 up on trial, 7 down for 10 s: at 16.9 still held.
    "a trial that fails doubles the hold": Scenario(
        ((0, LATE), (5, Look()), (6, Look()), (7, LATE), (16.9, Look()), (17, Look()), (18, Look())),
        (1, 1, 0, 1, 1, 1, 0),
    ),
    # After a passed trial (18 to 48) the next hold is 5 s again.
    "a trial that is passed forgets": Scenario(
        ((0, LATE), (5, Look()), (6, Look()), (7, LATE), (17, Look()), (18, Look()), (48, FINE), (49, LATE),
         (54, Look()), (55, Look())),
        (1, 1, 0, 1, 1, 0, 0, 1, 1, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios(name: str) -> None:
    scenario, ladder = SCENARIOS[name], Ladder(COSTS, LIMITS)
    assert tuple(ladder.look(look, now_s) for now_s, look in scenario.looks) == scenario.rungs


def test_one_network_never_moves() -> None:
    ladder = Ladder([4_000.0], LIMITS)
    looks = (LATE, HOT, Look(saving=True), Look())
    assert [ladder.look(look, now_s) for now_s, look in enumerate(looks)] == [0, 0, 0, 0]
    assert ladder.reason == ""


def test_it_says_why_a_smaller_one_answers() -> None:
    ladder = Ladder(COSTS, LIMITS)
    ladder.look(HOT, 0.0)
    assert ladder.reason == "81 °C, limit 80 °C"
    ladder.look(COOL, 5.0)
    ladder.look(COOL, 6.0)
    assert (ladder.rung, ladder.reason) == (0, "")


@pytest.mark.parametrize("costs", [[], [0.0], [1.0, math.inf], [math.nan], [-1.0]])
def test_costs_that_cannot_be(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="finite cost"):
        Ladder(costs, LIMITS)


def test_every_row_of_the_machine() -> None:
    assert set(TABLE) == set(Position)
    for position, event in ((p, e) for p in Position for e in Event):
        if event in TABLE[position]:
            after, move = step(position, event)
            assert (after is Position.HELD) or move not in (Move.SMALLER, Move.SMALLER_LONGER)
            assert (after is Position.TRIAL) or move is not Move.LARGER
        else:
            assert (position, event) == (Position.SETTLED, Event.OVER)
            with pytest.raises(IllegalEventError, match="settled takes no over"):
                step(position, event)


looks = st.builds(
    Look,
    p99_us=st.none() | st.floats(1.0, 1e6),
    temperature_c=st.none() | st.floats(-40.0, 120.0),
    saving=st.booleans(),
)


@given(st.lists(st.tuples(st.floats(0.0, 100.0), looks), max_size=60))
def test_whatever_happens_it_moves_by_one_and_holds(steps: list[tuple[float, Look]]) -> None:
    ladder, now_s, before, moved_down_at = Ladder(COSTS, LIMITS), 0.0, 0, -math.inf
    for passed, look in steps:
        now_s += passed
        rung = ladder.look(look, now_s)
        assert abs(rung - before) <= 1
        assert 0 <= rung < len(COSTS)
        if rung < before:
            assert now_s - moved_down_at >= HOLD_S
        if rung > before:
            moved_down_at = now_s
        before = rung
    assert HOLD_S <= ladder._hold_s <= LONGEST_HOLD_S
    assert ladder.rung or not ladder.reason
    assert TRIAL_S > HOLD_S


@pytest.mark.parametrize(
    ("rung", "deadline_us", "picked"),
    [(0, 9.0, 0), (0, 8.9, 1), (0, 2.0, 1), (0, 1.9, None), (1, 9.0, 1), (1, math.inf, 1), (0, 0.0, None)],
)
def test_pick(rung: int, deadline_us: float, picked: int | None) -> None:
    assert pick(rung, [9.0, 2.0], deadline_us) == picked
