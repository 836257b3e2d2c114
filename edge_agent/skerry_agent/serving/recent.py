"""Answered requests that a label can still join: bounded in rows and in bytes, the oldest go first."""

from __future__ import annotations

import collections
import threading
from typing import NamedTuple

from skerry_agent.engine.backend import Floats

#: Most memory for remembered inputs (bytes), whatever the number of rows.
RECENT_BYTES = 24 << 20


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
        byte_limit: Most bytes of input remembered.
    """

    def __init__(self, row_limit: int, byte_limit: int = RECENT_BYTES) -> None:
        self._row_limit = row_limit
        self._byte_limit = byte_limit
        self._lock = threading.Lock()
        self._requests: collections.OrderedDict[str, AnsweredRequest] = collections.OrderedDict()
        self._rows = 0
        self._bytes = 0

    def add(self, request_id: str, request: AnsweredRequest) -> None:
        """Remember a request; forgets the oldest as needed, and the request itself if it alone is over the limit."""
        with self._lock:
            old = self._requests.pop(request_id, None)
            if old is not None:
                self._account(old, -1)
            self._requests[request_id] = request
            self._account(request, 1)
            while self._rows > self._row_limit or self._bytes > self._byte_limit:
                _, oldest = self._requests.popitem(last=False)
                self._account(oldest, -1)

    def find(self, request_id: str) -> AnsweredRequest | None:
        """The request of that id, or None if it is unknown or too old."""
        with self._lock:
            return self._requests.get(request_id)

    def __len__(self) -> int:
        return len(self._requests)

    def _account(self, request: AnsweredRequest, sign: int) -> None:
        self._rows += sign * len(request.x)
        self._bytes += sign * request.x.nbytes
