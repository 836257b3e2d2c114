"""Latencies of this moment, from the serving process to the training process: one record in a mapped file.

Training looks before every step, so a look must cost next to nothing: no call, no lock, 40 bytes. A record carries its
checksum; one that is being written fails it and is read again. A record that serving has not renewed for
:data:`WINDOW_S` says nothing: serving is idle, stopped or stuck.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

#: Requests of how long a record is about, and the time between two records (seconds).
WINDOW_S = 2.0
PERIOD_S = 0.2
#: With fewer requests in the window its 99th percentile says nothing.
FEWEST = 20
#: Latencies that a window keeps at most.
MOST = 8192
#: CLOCK_MONOTONIC of the record (ns), requests in the window, their 99th percentile (us).
_RECORD = struct.Struct("<QII")
_CHECK = struct.Struct("<I")
_SIZE = _RECORD.size + _CHECK.size
_ATTEMPTS = 3


@dataclass(frozen=True)
class LiveLatency:
    """What a record says.

    Attributes:
        requests: Answered in the window.
        p99_us: 99th percentile of their latencies.
    """

    requests: int
    p99_us: int


#: Requests answered so far, and the latencies (us) of those after a number of them, the newest first.
Latest = Callable[[int], tuple[int, Sequence[float]]]


class LatencyWindow:
    """The last :data:`WINDOW_S` seconds of requests. Pure."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, Sequence[float]]] = deque()
        self._kept = 0

    def add(self, latencies: Sequence[float], now_s: float) -> None:
        """Latencies (us) since the last call."""
        if latencies:
            self._parts.append((now_s, latencies[:MOST]))
            self._kept += len(latencies[:MOST])
        while self._parts and (now_s - self._parts[0][0] > WINDOW_S or self._kept > MOST):
            if len(self._parts) == 1 and now_s - self._parts[0][0] <= WINDOW_S:
                break
            self._kept -= len(self._parts.popleft()[1])

    def value(self) -> LiveLatency:
        """Count and 99th percentile (nearest rank); all 0 without requests."""
        latencies = sorted(value for _, part in self._parts for value in part)
        if not latencies:
            return LiveLatency(0, 0)
        rank = -(-99 * len(latencies) // 100)
        return LiveLatency(len(latencies), round(min(latencies[rank - 1], 2**32 - 1)))


class LatencyPublisher:
    """Writes the record every :data:`PERIOD_S` while requests come; owns its thread."""

    def __init__(self, path: Path, latest: Latest, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError when the file cannot be made."""
        self._latest = latest
        self._monotonic = monotonic
        self._window = LatencyWindow()
        self._seen = latest(1 << 62)[0]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-latency", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and unmap the file."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._map.close()

    def step(self) -> None:
        """Write a record if there was a request in the window."""
        now = self._monotonic()
        self._seen, latencies = self._latest(self._seen)
        self._window.add(latencies, now)
        value = self._window.value()
        if value.requests:
            body = _RECORD.pack(round(now * 1e9), value.requests, value.p99_us)
            self._map[:_SIZE] = body + _CHECK.pack(zlib.crc32(body))

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.step()


class LatencyReader:
    """Reads the record; used by one thread."""

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._map: mmap.mmap | None = None
        self._look_at = 0.0

    def read(self) -> LiveLatency | None:
        """The newest record; None if serving says nothing, or too little to tell."""
        now = self._monotonic()
        if self._map is None:
            if now < self._look_at:
                return None
            self._look_at = now + WINDOW_S
            self._open()
        if self._map is None:
            return None
        for _ in range(_ATTEMPTS):
            data = self._map[:_SIZE]
            body = data[: _RECORD.size]
            if _CHECK.unpack_from(data, _RECORD.size)[0] == zlib.crc32(body):
                written_ns, requests, p99_us = _RECORD.unpack(body)
                late = not 0.0 <= now - written_ns / 1e9 + PERIOD_S <= WINDOW_S + PERIOD_S
                return None if late or requests < FEWEST else LiveLatency(requests, p99_us)
        return None

    def close(self) -> None:
        """Unmap the file."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def _open(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size >= _SIZE:
                    self._map = mmap.mmap(descriptor, _SIZE, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
