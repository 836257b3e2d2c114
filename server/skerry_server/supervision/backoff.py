"""How long to wait before a process that ended is started again. Pure.

The wait doubles with every end that follows a short life, and starts over after a life of :data:`HEALTHY_AFTER_S`.

>>> waits = Backoff()
>>> [waits.after_exit(lived_s=0.0) for _ in range(3)], waits.after_exit(lived_s=60.0)
([0.2, 0.4, 0.8], 0.2)
"""

from __future__ import annotations

#: First wait (seconds).
SHORTEST_S = 0.2
#: Longest wait (seconds).
LONGEST_S = 30.0
#: A process that lived so long was healthy (seconds).
HEALTHY_AFTER_S = 20.0


class Backoff:
    """The waits of one process.

    Attributes:
        short_lives: Ends in a row after a short life.
    """

    def __init__(self) -> None:
        self.short_lives = 0

    def after_exit(self, *, lived_s: float) -> float:
        """Seconds to wait, given how long the process lived."""
        if lived_s >= HEALTHY_AFTER_S:
            self.short_lives = 0
        wait = min(LONGEST_S, SHORTEST_S * 2.0 ** min(self.short_lives, 16))
        self.short_lives += 1
        return wait
