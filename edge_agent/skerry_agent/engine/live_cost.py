"""What an answer of a network takes now, from the answers that it gave. Pure, and cheap enough for every request.

Latencies depend on the rows of a request, so they are kept apart for 1, 2 to 3, 4 to 7 ... rows. A size that was not
seen yet is expected to take what the next smaller one does: no less, so nobody is refused for a guess.

A cost that nobody has renewed for :data:`FRESH_S` is believed no more: the device may have been slow for a moment, and
if everybody were refused for it, nobody would ever find out. Then the least that was ever measured counts: what that
does not allow is impossible. One answer never counts for more than :data:`MOST` times the mean: an outlier must not
have everybody else refused.
"""

from __future__ import annotations

#: Weight of a new measurement, what it counts for at most, in means, and how long a mean is believed (seconds).
NEW = 0.2
MOST = 2.0
FRESH_S = 1.0
#: A measurement says nothing new for so long (nanoseconds): what thousands of requests a second have in common.
NOTE_NS = 2_000_000
#: Sizes: 1 to 64 rows.
_SIZES = 7


class LiveCost:
    """Mean and least time of one network (us).

    Losing a measurement to another thread does no harm, so there is no lock.

    Args:
        measured_us: Median of one row when the release was loaded.

    Attributes:
        note_at_ns: Measurements before this moment need not be noted (``time.perf_counter_ns``).
    """

    __slots__ = ("_least", "_mean", "_seen_s", "note_at_ns")

    def __init__(self, measured_us: float) -> None:
        self._least = [measured_us] + [0.0] * (_SIZES - 1)
        self._mean = [measured_us] + [0.0] * (_SIZES - 1)
        self._seen_s = [float("-inf")] * _SIZES
        self.note_at_ns = 0

    def note(self, rows: int, took_us: float, now_ns: int) -> None:
        """Take in an answer.

        Args:
            rows: Of the request, 1 to 64.
            took_us: Time that it was computed, waiting left out.
            now_ns: When it ended.
        """
        self.note_at_ns = now_ns + NOTE_NS
        now_s = now_ns / 1e9
        size = min(rows.bit_length(), _SIZES) - 1
        least = self._least[size]
        if took_us < least or least == 0.0:
            self._least[size] = least = took_us
        mean = self._mean[size] if now_s - self._seen_s[size] < FRESH_S else least
        self._mean[size] = mean + NEW * ((took_us if took_us < MOST * mean else MOST * mean) - mean)
        self._seen_s[size] = now_s

    def expected_us(self, rows: int, now_s: float) -> float:
        """What a request of ``rows`` rows is expected to take to compute; ``now_s``: the same clock in seconds."""
        for size in range(min(rows.bit_length(), _SIZES) - 1, -1, -1):
            if now_s - self._seen_s[size] < FRESH_S:
                return self._mean[size]
            if self._least[size]:
                return self._least[size]
        return 0.0
