"""What an answer takes now, by hand."""

from __future__ import annotations

import pytest

from skerry_agent.engine.live_cost import NOTE_NS, LiveCost

S = 1_000_000_000


def test_before_any_answer_it_is_what_was_measured() -> None:
    assert [LiveCost(100.0).expected_us(rows, 5.0) for rows in (1, 2, 64)] == [100.0, 100.0, 100.0]


def test_a_mean_that_follows() -> None:
    cost = LiveCost(100.0)
    cost.note(1, 150.0, 10 * S)
    assert cost.expected_us(1, 10.0) == pytest.approx(110.0)  # 100 + 0.2 x 50
    cost.note(1, 160.0, 10 * S)
    assert cost.expected_us(1, 10.0) == pytest.approx(120.0)  # 110 + 0.2 x 50


def test_an_outlier_counts_for_two_means_at_most() -> None:
    cost = LiveCost(100.0)
    cost.note(1, 1e9, 10 * S)
    assert cost.expected_us(1, 10.0) == pytest.approx(120.0)


def test_what_nobody_renews_is_believed_no_more() -> None:
    cost = LiveCost(100.0)
    for _ in range(50):
        cost.note(1, 10_000.0, 10 * S)
    assert cost.expected_us(1, 10.9) > 5_000.0
    assert cost.expected_us(1, 11.1) == 100.0
    cost.note(1, 40.0, 20 * S)
    assert cost.expected_us(1, 30.0) == 40.0  # the least that was ever measured


def test_sizes_are_kept_apart_and_an_unknown_one_takes_no_less_than_a_smaller() -> None:
    cost = LiveCost(100.0)
    cost.note(4, 300.0, 10 * S)
    cost.note(7, 300.0, 10 * S)
    assert cost.expected_us(3, 10.0) == 100.0
    assert cost.expected_us(5, 10.0) == 300.0
    assert cost.expected_us(64, 10.0) == 300.0
    assert cost.expected_us(64, 99.0) == 300.0


def test_it_need_not_be_told_twice_in_a_moment() -> None:
    cost = LiveCost(100.0)
    assert cost.note_at_ns == 0
    cost.note(1, 90.0, 10 * S)
    assert cost.note_at_ns == 10 * S + NOTE_NS
