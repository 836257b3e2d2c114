"""A node that waits for its next instruction asks rarely, and soon when one is due."""

from __future__ import annotations

import pytest

from skerry_agent.training.pace import LONGEST_S, TRUST, PollPace


def fresh() -> PollPace:
    return PollPace(first_s=0.1, factor=2.0, last_s=1.0)


def test_without_a_campaign_delays_grow_to_the_bound() -> None:
    pace = fresh()
    assert [pace.next_s(0.0) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_after_one_round_the_wait_for_the_next_is_mostly_slept_through() -> None:
    pace = fresh()
    pace.arrived(0.0)
    pace.answered(1.0)
    assert pace.next_s(1.0) == 0.1  # the first round teaches nothing yet
    pace.arrived(5.0)  # four seconds after the answer
    pace.answered(6.0)
    assert pace.next_s(6.0) == pytest.approx(TRUST * 4.0)
    assert pace.next_s(6.0 + TRUST * 4.0) == 0.1
    assert pace.next_s(6.0 + TRUST * 4.0 + 0.1) == 0.2


def test_a_long_wait_is_never_trusted_beyond_the_bound() -> None:
    pace = fresh()
    pace.answered(0.0)
    pace.arrived(3600.0)
    pace.answered(3601.0)
    assert pace.next_s(3601.0) == LONGEST_S


def test_a_quick_round_makes_the_next_question_quick_again() -> None:
    pace = fresh()
    pace.answered(0.0)
    pace.arrived(0.05)
    pace.answered(0.1)
    assert pace.next_s(0.1) == 0.1


@pytest.mark.parametrize(("first", "factor", "last"), [(0.0, 2.0, 1.0), (2.0, 2.0, 1.0), (0.1, 1.0, 1.0)])
def test_senseless_delays_are_refused(first: float, factor: float, last: float) -> None:
    with pytest.raises(ValueError, match="first_s"):
        PollPace(first_s=first, factor=factor, last_s=last)
