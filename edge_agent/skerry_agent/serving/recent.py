"""Answered requests that a label can still join: bounded in rows and in bytes, the oldest go first.

A request is appended without a lock and put in order later, many at a time: labels come seldom, requests all the time.
"""

from __future__ import annotations

import collections
import threading
from typing import NamedTuple

from skerry_agent.engine.backend import Floats

#: Requests that wait to be put in order, and the size of an input that does not wait (bytes): together 1 MiB at most.
WAITING = 64
LARGE_BYTES = 16 << 10


class AnsweredRequest(NamedTuple):
    """What a label needs to know about a request.

    Attributes:
        x: float32 [batch, ...]: its input.
        scores: float32 [batch, classes].
        classes: Class names of the release that answered.
        release_id: That release.
    """

    x: Floats
    scores: Floats
    classes: tuple[str, ...]
    release_id: str

    def predicted(self, row: int) -> int:
        """Index of the best class of a row."""
        return int(self.scores[row].argmax())


class RecentRequests:
    """Request id to answered request. A reused id names the newest request. Thread-safe.

    Args:
        row_limit: Most rows remembered, >= 1.
        byte_limit: Most bytes of input remembered, >= 1.
    """

    def __init__(self, row_limit: int, byte_limit: int) -> None:
        self._row_limit = row_limit
        self._byte_limit = byte_limit
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[str, AnsweredRequest]] = collections.deque()
        self._requests: collections.OrderedDict[str, AnsweredRequest] = collections.OrderedDict()
        self._rows = 0
        self._bytes = 0

    def add(self, request_id: str, request: AnsweredRequest) -> None:
        """Remember a request; forgets the oldest as needed, and the request itself if it alone is over the limit."""
        self._waiting.append((request_id, request))
        if len(self._waiting) >= WAITING or request.x.nbytes > LARGE_BYTES:
            with self._lock:
                self._put_in_order()

    def find(self, request_id: str) -> AnsweredRequest | None:
        """The request of that id, or None if it is unknown or too old."""
        with self._lock:
            self._put_in_order()
            return self._requests.get(request_id)

    def __len__(self) -> int:
        with self._lock:
            self._put_in_order()
            return len(self._requests)

    def _put_in_order(self) -> None:
        """Take in what waits, one by one because others append meanwhile; the holder of the lock calls it."""
        for _ in range(len(self._waiting)):
            request_id, request = self._waiting.popleft()
            old = self._requests.pop(request_id, None)
            if old is not None:
                self._account(old, -1)
            self._requests[request_id] = request
            self._account(request, 1)
            while self._rows > self._row_limit or self._bytes > self._byte_limit:
                _, oldest = self._requests.popitem(last=False)
                self._account(oldest, -1)

    def _account(self, request: AnsweredRequest, sign: int) -> None:
        self._rows += sign * len(request.x)
        self._bytes += sign * request.x.nbytes
