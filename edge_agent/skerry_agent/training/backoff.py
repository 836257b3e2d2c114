"""Growing delays with a bound.

>>> backoff = Backoff(first_s=1.0, last_s=3.0)
>>> [backoff.next_s() for _ in range(3)]
[1.0, 2.0, 3.0]
"""

from __future__ import annotations


class Backoff:
    """Delays first, first * factor, ... up to the last, until it is reset."""

    def __init__(self, *, first_s: float, last_s: float, factor: float = 2.0) -> None:
        if not 0.0 < first_s <= last_s or factor <= 1.0:
            raise ValueError(f"need 0 < first_s <= last_s and factor > 1, got {first_s}, {last_s}, {factor}")
        self._first_s = first_s
        self._last_s = last_s
        self._factor = factor
        self._next_s = first_s

    def next_s(self) -> float:
        """The next delay in seconds."""
        delay = self._next_s
        self._next_s = min(self._last_s, delay * self._factor)
        return delay

    def reset(self) -> bool:
        """Start over; true if a delay had been taken since the last reset."""
        used = self._next_s != self._first_s
        self._next_s = self._first_s
        return used
