"""The reporter: everything that is submitted reaches the sink, in order, whatever the sink does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from skerry_agent.drift.reporter import QUEUE_REPORTS, Reporter
from skerry_agent.errors import DeviceError
from skerry_contract.v1.telemetry_pb2 import DriftReport, UplinkMessage


class FlakySink:
    """A sink that fails so many times first, and can be held up."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.windows: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def enqueue(self, message: UplinkMessage) -> int:
        self.gate.wait(10)
        if self.failures:
            self.failures -= 1
            raise DeviceError("the disk is full", remedy="none")
        self.windows.append(message.drift.window)
        return len(self.windows)


def test_what_is_submitted_is_written_in_order_before_close_returns() -> None:
    sink = FlakySink()
    reporter = Reporter(lambda: sink, tick=lambda: None)
    for window in range(1, 21):
        reporter.submit(DriftReport(window=window))
    reporter.close()
    assert sink.windows == list(range(1, 21))


def test_a_sink_that_fails_is_tried_again(wait_until: Callable[..., None]) -> None:
    sink = FlakySink(failures=1)
    reporter = Reporter(lambda: sink, tick=lambda: None)
    reporter.submit(DriftReport(window=1))
    reporter.submit(DriftReport(window=2))
    wait_until(lambda: sink.windows == [1, 2], what="both windows written")
    reporter.close()


def test_a_sink_that_cannot_be_opened_at_first(wait_until: Callable[..., None]) -> None:
    sink = FlakySink()
    tries: list[int] = []

    def open_sink() -> FlakySink:
        tries.append(1)
        if len(tries) == 1:
            raise DeviceError("no space", remedy="none")
        return sink

    reporter = Reporter(open_sink, tick=lambda: None)
    reporter.submit(DriftReport(window=1))
    wait_until(lambda: sink.windows == [1], what="the window written")
    reporter.close()
    assert len(tries) == 2


def test_the_queue_is_bounded_and_drops_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    sink = FlakySink()
    sink.gate.clear()
    reporter = Reporter(lambda: sink, tick=lambda: None)
    for window in range(QUEUE_REPORTS + 3):
        reporter.submit(DriftReport(window=window))
    assert reporter.dropped == 3
    sink.gate.set()
    reporter.close()
    assert sink.windows[-1] == QUEUE_REPORTS + 2
    assert len(sink.windows) in (QUEUE_REPORTS, QUEUE_REPORTS + 1)  # the one under way was dropped from the queue only
    assert "dropped" in caplog.text


def test_close_gives_up_on_a_sink_that_stays_broken(caplog: pytest.LogCaptureFixture) -> None:
    reporter = Reporter(lambda: FlakySink(failures=1_000), tick=lambda: None)
    reporter.submit(DriftReport(window=1))
    reporter.close()
    assert "1 drift reports could not be written" in caplog.text


def test_it_ticks(wait_until: Callable[..., None]) -> None:
    ticks: list[int] = []
    reporter = Reporter(FlakySink, tick=lambda: ticks.append(1), period=0.01)
    wait_until(lambda: len(ticks) > 3, what="ticks")
    reporter.close()
