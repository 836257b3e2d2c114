"""Lines on a pipe and messages on a connection that comes and goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import pytest

from skerry_agent.errors import DeviceError
from skerry_agent.link.mqtt import Connected, Connection, LinkEvent
from skerry_agent.stream.rows import Keep
from skerry_agent.stream.shutdown import Shutdown
from skerry_agent.stream.sinks import PENDING, UNACKNOWLEDGED, LineSink, TopicSink


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


class FakeConnection:
    """Has the methods of a connection that a sink uses; takes and acknowledges only what the test lets it."""

    def __init__(self, post: Callable[[LinkEvent], bool]) -> None:
        self.post = post
        self.up = False
        self.acknowledging = True
        self.got: list[tuple[str, bytes]] = []
        self.acknowledged: set[int] = set()
        self.stopped = False

    def start(self) -> None: ...

    def connect(self) -> None:
        self.up = True
        self.post(Connected("fake"))

    def send(self, topic: str, payload: bytes, *, qos: int = 1) -> Callable[[], bool] | None:
        if not self.up:
            return None
        self.got.append((topic, payload))
        number = len(self.got)
        if self.acknowledging:
            self.acknowledged.add(number)
        return lambda: number in self.acknowledged

    def stop(self) -> None:
        self.stopped = True

    def numbers(self) -> list[int]:
        return [int(payload.split(b":")[1][:-1]) for _, payload in self.got]


class Rig:
    def __init__(self, *, qos: int = 1, keep: Keep = "newest") -> None:
        self.clock = Clock()
        self.shutdown = Shutdown(monotonic=self.clock, sleep=self.clock.sleep)
        made: list[FakeConnection] = []

        def connect(post: Callable[[LinkEvent], bool]) -> Connection:
            made.append(FakeConnection(post))
            return cast(Connection, made[0])

        self.sink = TopicSink(("out", "out/errors"), connect, qos=qos, keep=keep, shutdown=self.shutdown)
        self.connection = made[0]

    def emit(self, *numbers: int) -> None:
        for number in numbers:
            self.sink.emit({"n": number}, error=False)


def test_errors_go_to_a_topic_of_their_own() -> None:
    rig = Rig()
    rig.connection.connect()
    rig.emit(1)
    rig.sink.emit({"error": "x"}, error=True)
    assert rig.connection.got == [("out", b'{"n":1}'), ("out/errors", b'{"error":"x"}')]
    rig.sink.close()
    assert (rig.connection.stopped, rig.sink.undelivered) == (True, 0)


@pytest.mark.parametrize(("keep", "first"), [("newest", 3), ("oldest", 0)])
def test_without_a_broker_a_bounded_number_waits_and_the_rest_is_counted(keep: Keep, first: int) -> None:
    rig = Rig(keep=keep)
    rig.emit(*range(PENDING + 3))
    assert rig.sink.undelivered == 3
    rig.connection.connect()
    for _ in range(PENDING // UNACKNOWLEDGED + 1):
        rig.sink.pump()
    assert rig.connection.numbers() == list(range(first, first + PENDING))


def test_when_all_are_kept_the_stream_waits_until_there_is_room() -> None:
    rig = Rig(keep="all")
    rig.emit(*range(PENDING))
    rig.clock.on_sleep = lambda: rig.connection.connect() if rig.clock.now > 3 else None
    rig.emit(PENDING)
    assert (rig.sink.undelivered, rig.clock.now > 3) == (0, True)


def test_what_was_not_acknowledged_goes_again_in_order_over_the_next_connection() -> None:
    rig = Rig()
    rig.connection.connect()
    rig.connection.acknowledging = False
    rig.emit(*range(UNACKNOWLEDGED + 5))
    assert rig.connection.numbers() == list(range(UNACKNOWLEDGED))  # a window, then it waits
    rig.connection.acknowledged |= {1, 2, 4}  # numbers 0, 1 and 3
    rig.connection.up = False
    rig.sink.pump()
    rig.connection.got.clear()
    rig.connection.acknowledged.clear()
    rig.connection.acknowledging = True
    rig.connection.connect()
    rig.sink.pump()
    rig.sink.pump()
    assert rig.connection.numbers() == [*range(2, UNACKNOWLEDGED + 5)]
    rig.sink.close()
    assert rig.sink.undelivered == 0


def test_qos_0_is_sent_once_and_what_was_under_way_is_counted() -> None:
    rig = Rig(qos=0)
    rig.connection.connect()
    rig.connection.acknowledging = False
    rig.emit(1, 2)
    rig.connection.connect()
    rig.sink.pump()
    assert (rig.connection.numbers(), rig.sink.undelivered) == ([1, 2], 2)


def test_the_end_waits_for_the_broker_for_a_bounded_time() -> None:
    rig = Rig()
    rig.emit(1, 2)
    rig.sink.close()
    assert rig.clock.now == pytest.approx(5.0, abs=0.1)
    assert (rig.sink.undelivered, rig.connection.stopped) == (2, True)


def test_lines_on_a_pipe() -> None:
    reader, writer = os.pipe()
    sink = LineSink(writer, Shutdown())
    long: dict[str, Any] = {"b": "ä" * 3000}
    sink.emit({"a": 1}, error=False)
    sink.emit(long, error=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        lines = file.read().splitlines()
    assert lines[0] == b'{"a":1}'
    assert len(lines) == 2
    with pytest.raises(ValueError, match="JSON"):
        sink.emit({"a": float("nan")}, error=False)


def test_a_reader_that_is_gone_ends_the_stream_and_one_that_is_stuck_does_not_hold_it() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    shutdown = Shutdown(monotonic=clock, sleep=clock.sleep)
    sink = LineSink(writer, shutdown)
    shutdown.ask()
    clock.now = 60.0
    sink.emit({"a": 1}, error=False)
    assert sink.undelivered == 1
    os.close(reader)
    with pytest.raises(DeviceError, match="standard output"):
        LineSink(writer, Shutdown()).emit({"a": 1}, error=False)
    os.close(writer)
