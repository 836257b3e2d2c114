"""Brings finished reports into the outbox, off the path of requests.

One thread, owned and joined by whoever calls :meth:`Reporter.close`. A sink that fails (a full disk) is tried again
with growing pauses; the queue before it is bounded, and what it has to drop is counted and logged.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from skerry_contract.v1.telemetry_pb2 import DriftReport, UplinkMessage

_log = logging.getLogger(__name__)

#: Reports that wait for a sink that fails.
QUEUE_REPORTS = 256
#: Longest pause between two tries (s).
LONGEST_PAUSE = 30.0


class ReportSink(Protocol):
    """Where messages for the control plane go; ``skerry_agent.link.outbox.Outbox`` is one."""

    def enqueue(self, message: UplinkMessage) -> int:
        """Keep a message durably and return its sequence number."""
        ...


class Reporter:
    """Queue and thread between the request path and the outbox.

    Args:
        open_sink: Gives the sink when the first report is there, so that an outbox that cannot be opened does not
            keep a device from answering.
        tick: Called once a period: closes windows whose time is over.
        period: Seconds between ticks.
    """

    def __init__(self, open_sink: Callable[[], ReportSink], *, tick: Callable[[], None], period: float = 1.0) -> None:
        self._open_sink = open_sink
        self._tick = tick
        self._period = period
        self._sink: ReportSink | None = None
        self._queue: collections.deque[DriftReport] = collections.deque()
        self._wake = threading.Condition()
        self._stopping = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="drift-reporter", daemon=True)
        self._thread.start()

    def submit(self, report: DriftReport) -> None:
        """Queue a report; never blocks. The oldest is dropped when the queue is full."""
        with self._wake:
            if len(self._queue) >= QUEUE_REPORTS:
                lost = self._queue.popleft()
                self.dropped += 1
                _log.error("the outbox takes no reports: window %d is dropped", lost.window)
            self._queue.append(report)
            self._wake.notify()

    def close(self, *, timeout: float = 5.0) -> None:
        """Write what is queued and end the thread, waiting at most ``timeout`` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        if self._thread.is_alive() or self._queue:
            _log.error("%d drift reports could not be written before the end", len(self._queue))

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._wake:
                if pause:
                    self._wake.wait_for(lambda: self._stopping, pause)
                elif not self._queue:
                    self._wake.wait_for(lambda: self._stopping or bool(self._queue), self._period)
                stopping = self._stopping
                report = self._queue[0] if self._queue else None
            if report is not None:
                written = self._write(report)
                if not written and stopping:
                    return
                pause = 0.0 if written else min(LONGEST_PAUSE, max(0.5, pause * 2))
            elif stopping:
                return
            if not stopping:
                self._tick()

    def _write(self, report: DriftReport) -> bool:
        try:
            if self._sink is None:
                self._sink = self._open_sink()
            self._sink.enqueue(UplinkMessage(drift=report))
        except Exception:
            _log.exception("window %d cannot be written to the outbox yet", report.window)
            return False
        with self._wake:
            if self._queue and self._queue[0] is report:
                self._queue.popleft()
        return True
