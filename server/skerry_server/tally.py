"""Counts of what came in, by outcome, for the status of a process."""

from __future__ import annotations

import collections
import threading


class Tally:
    """Named counters; safe to share between threads. Names are chosen by the program, never by a message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Count ``count`` more of ``name``."""
        with self._lock:
            self._counts[name] += count

    def counts(self) -> dict[str, int]:
        """Every counter, sorted by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))
