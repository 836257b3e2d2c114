"""Rows on their way from a source to the model: a bounded queue that says what it dropped.

Invariants: at most ``limit`` rows and :data:`TOLD` refusals wait, and with "all" one more row that was given back; rows
leave in the order in which they came; a row that is dropped is counted; refusals have room of their own, so garbage
displaces no row.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Keep = Literal["newest", "oldest", "all"]
KEEPS: tuple[Keep, ...] = ("newest", "oldest", "all")
#: Refusals that wait to be told; more are only counted.
TOLD = 64


@dataclass
class Row:
    """One row.

    Attributes:
        x: float32, of the model's shape.
        id: Names the answer.
        at_ms: When it was taken, or came (ms since 1970).
        due_s: Monotonic clock by which the answer is wanted (s); None: whenever.
        attempts: How often the model was asked.
    """

    x: npt.NDArray[np.float32]
    id: str
    at_ms: float
    due_s: float | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Refusal:
    """What is told about a message that holds no row.

    Attributes:
        id: As given; empty if none could be read.
        error: What was wrong.
        at_ms: When it came (ms since 1970).
    """

    id: str
    error: str
    at_ms: float


class RowQueue:
    """Between the source's thread and the one that asks.

    Args:
        limit: Rows that may wait, 1 or more.
        keep: Who stays when there are more: the newest, the oldest, or all: then the source waits.
    """

    def __init__(self, limit: int, *, keep: Keep) -> None:
        if limit < 1:
            raise ValueError(f"a queue of {limit} rows")
        self._limit, self._keep = limit, keep
        self._rows: deque[Row] = deque()
        self._refusals: deque[Refusal] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0
        self.untold = 0

    def put(self, row: Row) -> None:
        """Add a row; waits for room if all are kept. After :meth:`close` it is dropped."""
        with self._changed:
            if self._keep == "all":
                self._changed.wait_for(lambda: self._closed or len(self._rows) < self._limit)
            if self._closed:
                self.dropped += 1
                return
            if len(self._rows) >= self._limit:
                self.dropped += 1
                if self._keep == "oldest":
                    return
                self._rows.popleft()
            self._rows.append(row)
            self._changed.notify_all()

    def give_back(self, row: Row) -> None:
        """Put the row that :meth:`take` gave last in front again; if there is no room, the setting says who goes."""
        with self._changed:
            if len(self._rows) >= self._limit and self._keep != "all":
                self.dropped += 1
                if self._keep == "newest":
                    return
                self._rows.pop()
            self._rows.appendleft(row)

    def tell(self, refusal: Refusal) -> None:
        """Have a refusal told."""
        with self._changed:
            if self._closed or len(self._refusals) >= TOLD:
                self.untold += 1
                return
            self._refusals.append(refusal)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Row | Refusal | None:
        """The next refusal or row; None if there was none for so long, or there never will be."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not (self._rows or self._refusals or self._closed):
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            if self._refusals:
                return self._refusals.popleft()
            if not self._rows:
                return None
            row = self._rows.popleft()
            self._changed.notify_all()
            return row

    def close(self) -> None:
        """Nothing more comes; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        with self._changed:
            return len(self._rows)

    @property
    def ended(self) -> bool:
        """Closed, and everything was taken."""
        with self._changed:
            return self._closed and not self._rows and not self._refusals
