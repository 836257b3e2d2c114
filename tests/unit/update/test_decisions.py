"""Probation, pacing of requests, the journal's counters: numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.config import AgentLayout
from skerry_agent.update.decisions import Probation, Sight, after_failure
from skerry_agent.update.desired import trusted_now_ms
from skerry_agent.update.journal import Journal, count_failure, read_journal, write_journal
from skerry_agent.update.pacing import RequestPacer
from skerry_agent.update.update_machine import Event, State


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


def test_the_journal_comes_back_as_it_was_written(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    assert read_journal(layout) == Journal()
    journal = Journal(State.PROVING, "slot b", 7, b"\x00\xff", 6, b"target", 3, {"aa": 2}, 1_700_000_000_000)
    write_journal(layout, journal)
    assert read_journal(layout) == journal


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "state": "idle"}', b"\xff\xfe"])
def test_a_broken_journal_is_put_aside(tmp_path: Path, data: bytes) -> None:
    layout = AgentLayout(tmp_path)
    layout.update.mkdir(parents=True)
    (layout.update / "journal.json").write_bytes(data)
    assert read_journal(layout) == Journal()
    assert (layout.update / "journal.broken.json").read_bytes() == data


def test_requests_come_further_apart_while_nothing_comes() -> None:
    pacer, now, asked = RequestPacer(), 0.0, []
    for _ in range(8):
        now = max(now, pacer.due)
        asked.append(now)
        pacer.asked(now)
    assert asked == [0, 2, 6, 14, 30, 62, 122, 182]
    pacer.heard(now)
    assert pacer.due == now + 2
    pacer.refused(now)
    assert pacer.due == now + 30
    pacer.connected(now)
    assert pacer.due == now
