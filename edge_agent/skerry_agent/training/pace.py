"""How long a node waits before it asks the SuperLink again. Pure; times are monotonic seconds.

Every question costs the SuperLink some ten milliseconds of its one core, so a fleet that asks as fast as it can starves
the rounds that it waits for. In a campaign the next instruction comes about as long after an answer as the last time:
a node sleeps through most of that, then asks often. Without a campaign it asks less and less often.

>>> pace = PollPace(first_s=0.1, factor=2.0, last_s=2.0)
>>> [pace.next_s(now) for now in (0.0, 0.1, 0.3)]
[0.1, 0.2, 0.4]
"""

from __future__ import annotations

#: Share of the expected wait that is slept through.
TRUST = 0.7
#: Longest sleep on an expectation (seconds).
LONGEST_S = 5.0


class PollPace:
    """Delays between questions of one node."""

    def __init__(self, *, first_s: float, factor: float, last_s: float) -> None:
        if not 0.0 < first_s <= last_s or factor <= 1.0:
            raise ValueError(f"need 0 < first_s <= last_s and factor > 1, got {first_s}, {last_s}, {factor}")
        self._first_s = first_s
        self._factor = factor
        self._last_s = last_s
        self._next_s = first_s
        self._answered_at: float | None = None
        self._expected_s = 0.0

    def arrived(self, now: float) -> None:
        """An instruction has come."""
        if self._answered_at is not None:
            self._expected_s = now - self._answered_at
        self._next_s = self._first_s

    def answered(self, now: float) -> None:
        """Its answer has been sent."""
        self._answered_at = now
        self._next_s = self._first_s

    def next_s(self, now: float) -> float:
        """Seconds until the next question, which found nothing this time."""
        if self._answered_at is not None:
            rest = min(TRUST * self._expected_s, LONGEST_S) - (now - self._answered_at)
            if rest > self._first_s:
                return rest
        delay = self._next_s
        self._next_s = min(self._last_s, delay * self._factor)
        return delay
