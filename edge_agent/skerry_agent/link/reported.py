"""Publishes the reported state: on every change, and now and then without one; revisions only ever count up.

Revisions are reserved on disk in blocks, so that a device that reports every second does not wear its flash: after a
restart it goes on with the next block.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from skerry_agent.files import DISK, Disk
from skerry_agent.link.uplink import Publisher
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.device_pb2 import ReportedState

log = logging.getLogger(__name__)
#: Revisions reserved at once.
BLOCK = 1_000
#: Longest time without a report, and shortest time between two that differ only in their progress (seconds).
PERIOD_S = 30.0
PROGRESS_S = 1.0


class Revisions:
    """Numbers that count up over restarts."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._reserved = self._read()
        self._last = self._reserved

    def _read(self) -> int:
        try:
            return max(0, int(json.loads(self._path.read_bytes())["reserved"]))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            # Nobody may see a lower number than before: the clock is the best guess at a higher one.
            log.error("%s cannot be used (%s): revisions go on from the clock", self._path, error)
            return int(time.time())

    def next(self) -> int:
        """The next number.

        Raises:
            OSError: It cannot be reserved.
        """
        if self._last >= self._reserved:
            self._disk.make_folder(self._path.parent)
            self._disk.write_atomically(self._path, json.dumps({"reserved": self._last + BLOCK}).encode())
            self._reserved = self._last + BLOCK
        self._last += 1
        return self._last


class Reporter:
    """Owned by the control loop."""

    def __init__(
        self,
        publisher: Publisher,
        revisions: Revisions,
        *,
        device_id: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher = publisher
        self._revisions = revisions
        self._topic = device_topic(device_id, DeviceTopic.REPORTED)
        self._monotonic = monotonic
        self._sent: ReportedState | None = None
        self._sent_at = 0.0

    def connected(self) -> None:
        """The connection is new: say everything again."""
        self._sent = None

    def step(self, state: ReportedState) -> None:
        """Publish ``state`` (without revision and time) if it is news or the last report is old."""
        if not self._publisher.ready:
            return
        now = self._monotonic()
        if self._sent is not None:
            age = now - self._sent_at
            quick = _without_progress(state) != _without_progress(self._sent)
            if not quick and age < (PERIOD_S if state == self._sent else PROGRESS_S):
                return
        message = ReportedState()
        message.CopyFrom(state)
        try:
            message.revision = self._revisions.next()
        except OSError as error:
            log.error("reported state cannot be numbered: %s", error)
            return
        message.reported_unix_ms = time.time_ns() // 1_000_000
        if self._publisher.publish(self._topic, message.SerializeToString(), retain=True):
            self._sent, self._sent_at = state, now


def _without_progress(state: ReportedState) -> bytes:
    copy = ReportedState()
    copy.CopyFrom(state)
    copy.ClearField("chunks_done")
    copy.ClearField("update_detail")
    copy.ClearField("labelled_samples")
    return copy.SerializeToString(deterministic=True)
