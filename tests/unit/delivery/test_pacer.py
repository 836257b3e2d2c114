"""When a device speaks: asked for reports, while chunks come, and when they do not. Times by hand."""

from __future__ import annotations

import pytest

from skerry_agent.update.pacing import ALIVE_S, QUIET_FLOOR_S, QUIET_S, REFUSED_S, REPORT_S, RequestPacer


def started() -> RequestPacer:
    pacer = RequestPacer()
    pacer.asked(0.0)
    return pacer


def test_a_device_reports_after_as_many_chunks_as_the_server_wants() -> None:
    pacer = started()
    for number in range(1, 8):
        pacer.heard(number / 100, report_every=8)
        assert pacer.due == pytest.approx(number / 100 + REPORT_S)
    pacer.heard(0.08, report_every=8)
    assert pacer.due == 0.08
    pacer.asked(0.08)
    assert pacer.due == pytest.approx(0.08 + QUIET_FLOOR_S), "then it listens"


def test_one_that_is_not_asked_says_now_and_then_that_it_listens() -> None:
    pacer, now, spoke = started(), 0.0, []
    while now < 100:
        now += 0.5
        pacer.heard(now)
        if pacer.due <= now:
            spoke.append(now)
            pacer.asked(now)
    assert spoke == [ALIVE_S, 2 * ALIVE_S, 3 * ALIVE_S]


def test_a_slow_pace_is_not_taken_for_silence() -> None:
    pacer = started()
    for number in range(1, 6):
        pacer.heard(number * 0.9)
    assert pacer.due == pytest.approx(4.5 + 2 * 0.9)
    assert pacer.quiet_for(5.0) == pytest.approx(0.5)


def test_a_gap_that_a_request_ended_says_nothing_of_the_pace() -> None:
    pacer = started()
    pacer.heard(0.1)
    pacer.heard(0.2)
    assert pacer.quiet_s == QUIET_FLOOR_S
    pacer.asked(1.2)  # quiet for a second
    assert pacer.quiet_s == 1.5
    pacer.heard(3.0)
    assert pacer.quiet_s == 1.5, "the longer period stays until the pace is known again"
    pacer.heard(3.1)
    assert pacer.quiet_s == QUIET_FLOOR_S


def test_a_new_connection_asks_at_once_and_a_refusal_later() -> None:
    pacer = started()
    pacer.heard(1.0, report_every=8)
    pacer.connected(5.0)
    assert pacer.due <= 5.0
    pacer.refused(5.0)
    assert pacer.due == 5.0 + REFUSED_S


def test_devices_do_not_ask_in_the_same_moment() -> None:
    first, last = RequestPacer(spread=0.0), RequestPacer(spread=1.0)
    first.asked(0.0)
    last.asked(0.0)
    assert (first.due, last.due) == (QUIET_S, QUIET_S * 1.25)


def test_before_it_has_asked_a_device_was_never_quiet() -> None:
    pacer = RequestPacer()
    assert pacer.quiet_for(100.0) == 0.0
    assert pacer.due == 0.0
