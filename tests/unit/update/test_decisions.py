"""Probation, pacing of requests, the counters of failures: numbers worked out by hand."""

from __future__ import annotations

import pytest

from skerry_agent.update.decisions import Probation, Sight, after_failure
from skerry_agent.update.desired import trusted_now_ms
from skerry_agent.update.journal import Journal, count_failure
from skerry_agent.update.pacing import RequestPacer
from skerry_agent.update.update_machine import Event


def looking(*looks: tuple[float, Sight | None], probation_s: float = 10.0) -> tuple[Event | None, str]:
    probation = Probation("digits-2", started=0.0, last_seen=0.0)
    verdict: tuple[Event | None, str] = (None, "")
    for now, sight in looks:
        assert verdict[0] is None, "decided before the last look"
        verdict = probation.judge(sight, now, probation_s)
    return verdict


def sight(requests: int = 0, errors: int = 0, *, pid: int = 1, release: str = "digits-2") -> Sight:
    return Sight(release, pid, requests, errors)


@pytest.mark.parametrize(
    ("looks", "event", "why"),
    [
        ([(1.0, sight())], None, "on probation for 9 s more"),
        ([(10.0, sight())], Event.HEALTHY, "0 requests, 0 errors"),
        ([(1.0, sight(19, 19))], None, "on probation for 9 s more"),
        ([(1.0, sight(20, 1))], None, "on probation for 9 s more"),
        ([(1.0, sight(20, 2))], Event.ROLL_BACK, "2 of 20 requests failed"),
        ([(10.0, sight(1000, 50))], Event.HEALTHY, "1000 requests, 50 errors"),
        ([(10.0, sight(1000, 51))], Event.ROLL_BACK, "51 of 1000 requests failed"),
        ([(1.0, sight(release="digits-1"))], Event.ROLL_BACK, "serving answers with digits-1"),
        ([(1.0, sight()), (46.0, None)], None, "waits for serving to answer"),
        ([(1.0, sight()), (46.1, None)], Event.ROLL_BACK, "serving has not answered with a release for 45 s"),
        ([(1.0, sight(release="")), (45.1, sight(release=""))], Event.ROLL_BACK, "serving has not answered"),
        ([(1.0, sight()), (2.0, sight(pid=2)), (3.0, sight(pid=3))], None, "on probation for 7 s more"),
        (
            [(1.0, sight()), (2.0, sight(pid=2)), (3.0, sight(pid=3)), (4.0, sight(pid=4))],
            Event.ROLL_BACK,
            "serving was started 4 times",
        ),
    ],
)
def test_probation(looks: list[tuple[float, Sight | None]], event: Event | None, why: str) -> None:
    decided, reason = looking(*looks)
    assert decided is event
    assert reason.startswith(why)


def test_the_third_failure_rejects() -> None:
    journal = Journal()
    assert after_failure(journal, "aa", otherwise=Event.RETRY) is Event.RETRY
    journal = count_failure(journal, "aa")
    assert after_failure(journal, "aa", otherwise=Event.ROLL_BACK) is Event.ROLL_BACK
    journal = count_failure(journal, "aa")
    assert after_failure(journal, "aa", otherwise=Event.RETRY) is Event.REJECT
    assert after_failure(journal, "bb", otherwise=Event.RETRY) is Event.RETRY


def test_the_oldest_failure_is_forgotten_first() -> None:
    journal = Journal()
    for number in range(64):
        journal = count_failure(journal, f"{number:02d}")
    journal = count_failure(journal, "00")
    journal = count_failure(journal, "new")
    assert len(journal.failures) == 64
    assert "01" not in journal.failures
    assert journal.failures["00"] == 2


def test_a_clock_far_behind_a_signature_is_not_believed() -> None:
    day = 86_400_000
    assert trusted_now_ms(10 * day, 9 * day) == 10 * day
    assert trusted_now_ms(9 * day, 10 * day) == 9 * day
    assert trusted_now_ms(9 * day - 1, 10 * day) == 10 * day


def test_requests_come_further_apart_while_nothing_comes() -> None:
    pacer, now, asked = RequestPacer(), 0.0, []
    for _ in range(5):
        now = max(now, pacer.due)
        asked.append(now)
        pacer.asked(now)
    assert asked == [0, 2, 5, 9.5, 16.25]  # 2 s, and one and a half times as long after each
    for _ in range(20):
        now = pacer.due
        pacer.asked(now)
    assert pacer.due == now + 60
    pacer.heard(now)
    assert pacer.due == now + 2
    pacer.refused(now)
    assert pacer.due == now + 30
    pacer.connected(now)
    assert pacer.due == now
