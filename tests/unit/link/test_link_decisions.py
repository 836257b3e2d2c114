"""Back-off, draining, reporting: decided without a broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.link.backoff import MAXIMUM_SPREAD_MS, Backoff, ReconnectSpread, reconnect_delay
from skerry_agent.link.drain import ACK_S, WINDOW, Drain
from skerry_agent.link.outbox import Outbox
from skerry_agent.link.reported import Reporter, Revisions
from skerry_agent.link.uplink import Uplink
from skerry_contract.errors import WireError
from skerry_contract.v1.device_pb2 import ReportedState
from skerry_contract.v1.telemetry_pb2 import LabelReport, UplinkAck, UplinkMessage


class Sent:
    """A publisher that remembers, and has no connection or no room when it is told so."""

    def __init__(self) -> None:
        self.ready = True
        self.room = 10_000
        self.messages: list[tuple[str, bytes, bool]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        if not self.ready or self.room == 0:
            return False
        self.room -= 1
        self.messages.append((topic, payload, retain))
        return True


def largest(low: float, high: float) -> float:
    assert low == 0.0
    return high


@pytest.mark.parametrize(
    ("failures", "ceiling", "longest"),
    [(0, 300, 0), (1, 300, 2), (3, 300, 8), (9, 300, 300), (60, 300, 300), (5, 1, 1)],
)
def test_the_wait_doubles_up_to_the_ceiling(failures: int, ceiling: float, longest: float) -> None:
    assert reconnect_delay(failures, ceiling_s=ceiling, uniform=largest) == longest


@pytest.mark.parametrize(
    ("failures", "ceiling", "spread", "longest"),
    [(0, 300, 60, 0), (1, 300, 60, 60), (5, 300, 60, 60), (7, 300, 60, 128), (1, 20, 60, 20), (1, 300, 0.5, 2)],
)
def test_the_control_plane_may_ask_for_a_longer_range(
    failures: int, ceiling: float, spread: float, longest: float
) -> None:
    assert reconnect_delay(failures, ceiling_s=ceiling, uniform=largest, spread_s=spread) == longest


@given(st.integers(-5, 10_000), st.floats(0.1, 1_000), st.floats(0, 1e6))
def test_the_wait_is_never_longer_than_the_ceiling(failures: int, ceiling: float, spread: float) -> None:
    assert 0 <= reconnect_delay(failures, ceiling_s=ceiling, uniform=largest, spread_s=spread) <= ceiling


def test_the_spread_is_kept_over_restarts_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "link" / "spread.json"
    spread = ReconnectSpread(path)
    assert spread.seconds == 0
    spread.learn(0)
    assert not path.exists(), "nothing to keep"
    spread.learn(30_000)
    assert ReconnectSpread(path).seconds == 30
    spread.learn(10**12)
    assert ReconnectSpread(path).seconds == MAXIMUM_SPREAD_MS / 1000
    path.write_text('{"spread_ms": 1e999}')
    assert ReconnectSpread(path).seconds == 0


def test_a_fleet_whose_power_comes_back_is_spread_too(tmp_path: Path) -> None:
    path, spread = tmp_path / "control.json", ReconnectSpread(tmp_path / "spread.json")

    def process() -> Backoff:
        return Backoff(path, ceiling_s=300, spread_s=lambda: spread.seconds, uniform=largest)

    spread.learn(60_000)
    first = process()
    assert first.delay() == 0, "a device that never was connected does not wait"
    first.succeeded(connected=True)
    # The power fails: nothing is said to the next process, which finds that a connection stood.
    second = process()
    assert (second.failures, second.delay()) == (1, 60)
    second.succeeded(connected=True)
    second.ended()
    assert process().delay() == 0, "it was stopped on purpose"


def test_failures_are_counted_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "link" / "control.json"
    first = Backoff(path, ceiling_s=300, uniform=largest)
    assert first.delay() == 0
    for _ in range(4):
        first.failed()
    second = Backoff(path, ceiling_s=300, uniform=largest)
    assert second.delay() == 16
    second.succeeded()
    assert Backoff(path, ceiling_s=300, uniform=largest).delay() == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"failures": "many"}', '{"failures": null}'])
def test_a_broken_count_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "control.json"
    path.write_text(text)
    assert Backoff(path, ceiling_s=300).failures == 0


def test_the_window_moves_with_acknowledgements_and_late_ones_are_sent_again() -> None:
    drain = Drain()
    pending = list(range(1, WINDOW + 4))
    first = drain.to_send(pending, 0.0)
    assert first == pending[:WINDOW]
    for number in first:
        drain.sent(number, 0.0)
    assert drain.to_send(pending, ACK_S - 0.1) == []
    del pending[:2]
    assert drain.to_send(pending, ACK_S - 0.1) == [WINDOW + 1, WINDOW + 2]
    drain.sent(WINDOW + 1, ACK_S - 0.1)
    drain.sent(WINDOW + 2, ACK_S - 0.1)
    assert drain.to_send(pending, ACK_S) == first[2:]
    drain.reconnected()
    assert drain.to_send(pending, ACK_S) == pending[:WINDOW]


@given(st.lists(st.tuples(st.sampled_from(["tick", "ack", "reconnect"]), st.integers(0, 40)), max_size=60))
def test_never_more_than_a_window_and_nothing_is_forgotten(actions: list[tuple[str, int]]) -> None:
    drain, pending, now = Drain(), list(range(100)), 0.0
    for action, amount in actions:
        if action == "tick":
            now += amount
        elif action == "ack":
            del pending[:amount]
        else:
            drain.reconnected()
        sent = drain.to_send(pending, now)
        assert sent == sorted(sent)
        for number in sent:
            drain.sent(number, now)
        assert set(drain.in_flight) == set(pending[:WINDOW])


def test_a_message_leaves_only_with_its_acknowledgement(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", device_id="press-07", message_limit=100, byte_limit=1 << 20)
    sent = Sent()
    now = [0.0]
    uplink = Uplink(outbox, sent, device_id="press-07", monotonic=lambda: now[0])
    for _ in range(3):
        outbox.enqueue(UplinkMessage(label=LabelReport(labelled=1)))
    sent.ready = False
    uplink.step()
    assert sent.messages == []
    sent.ready, sent.room = True, 2
    uplink.step()
    sent.room = 100
    uplink.step()
    assert [UplinkMessage.FromString(payload).sequence for _, payload, _ in sent.messages] == [1, 2, 3]
    assert {topic for topic, _, _ in sent.messages} == {"skerry/v1/d/press-07/up"}
    assert outbox.depth() == 3
    uplink.acknowledged(UplinkAck(outbox_id=outbox.outbox_id, sequences=[1, 3]).SerializeToString())
    assert [found.sequence for found in outbox.pending(9)] == [2]
    uplink.step()
    assert len(sent.messages) == 3
    now[0] = ACK_S
    uplink.step()
    assert UplinkMessage.FromString(sent.messages[-1][1]).sequence == 2
    uplink.connected()
    uplink.step()
    assert len(sent.messages) == 5


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xff", UplinkAck(outbox_id="x", sequences=range(4_097)).SerializeToString()],
    ids=["malformed", "too many"],
)
def test_a_bad_acknowledgement_removes_nothing(tmp_path: Path, payload: bytes) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", device_id="press-07", message_limit=100, byte_limit=1 << 20)
    outbox.enqueue(UplinkMessage(label=LabelReport(labelled=1)))
    with pytest.raises(WireError):
        Uplink(outbox, Sent(), device_id="press-07").acknowledged(payload)
    assert outbox.depth() == 1


def test_reports_on_change_now_and_then_and_after_a_reconnect(tmp_path: Path) -> None:
    sent, now = Sent(), [0.0]
    reporter = Reporter(sent, Revisions(tmp_path / "r.json"), device_id="press-07", monotonic=lambda: now[0])

    def at(second: float, **fields: int | str) -> int:
        now[0] = second
        reporter.step(ReportedState(device_id="press-07", **fields))  # type: ignore[arg-type]
        return len(sent.messages)

    assert at(0.0) == 1
    assert at(1.0) == 1
    assert at(1.1, active_release="digits-1") == 2, "a change goes out at once"
    assert at(1.2, active_release="digits-1", chunks_done=1) == 2, "progress waits a second"
    assert at(2.1, active_release="digits-1", chunks_done=2) == 3
    assert at(32.0, active_release="digits-1", chunks_done=2) == 3
    assert at(32.1, active_release="digits-1", chunks_done=2) == 4, "30 s without a report"
    reporter.connected()
    assert at(32.2, active_release="digits-1", chunks_done=2) == 5
    states = [ReportedState.FromString(payload) for _, payload, _ in sent.messages]
    assert [state.revision for state in states] == [1, 2, 3, 4, 5]
    assert all(retain for _, _, retain in sent.messages)
    assert all(state.reported_unix_ms > 0 for state in states)


def test_revisions_count_up_over_restarts_and_over_a_lost_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first = Revisions(path)
    seen = [first.next() for _ in range(3)]
    second = Revisions(path)
    seen.append(second.next())
    path.write_text("{")
    third = Revisions(path)
    seen.append(third.next())
    assert seen[:3] == [1, 2, 3]
    assert seen == sorted(set(seen))


def test_a_report_that_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    sent = Sent()
    reporter = Reporter(sent, Revisions(tmp_path / "r.json"), device_id="press-07", monotonic=lambda: 5.0)
    sent.room = 0
    reporter.step(ReportedState(device_id="press-07"))
    sent.room = 1
    reporter.step(ReportedState(device_id="press-07"))
    assert len(sent.messages) == 1
