"""How many requests are computed at a time, and how many may wait.

More computations than cores only make each of them slower, so the rest waits in a queue, which is bounded: whoever
comes when it is full is turned away at once, with a clear error, instead of waiting for an answer that nobody needs
any more. Waiting costs nothing while there is room: a token is taken from a queue and put back.
"""

from __future__ import annotations

import os
import queue

from skerry_agent.engine.errors import OverloadedError

#: A deadline that is later than this is as good as none (seconds).
LONGEST_WAIT_S = 3600.0


class Admission:
    """Tokens for computations. Thread-safe.

    Args:
        parallel: Computations at a time; 0: as many as this process has cores.
        waiting: Requests that may wait beside them.

    Attributes:
        parallel: Computations at a time.
        limit: Requests that may be under way, computed or waiting.
    """

    def __init__(self, parallel: int, waiting: int) -> None:
        self.parallel = parallel or len(os.sched_getaffinity(0))
        self.limit = self.parallel + waiting
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.parallel):
            self._tokens.put(None)
        self.take = self._tokens.get
        self.give = self._tokens.put

    def check(self, in_flight: int) -> None:
        """Turn a request away if too many are under way, itself among them.

        Raises:
            OverloadedError: They are.
        """
        if in_flight > self.limit:
            raise OverloadedError(in_flight - 1, self.limit)

    def take_within(self, seconds: float) -> bool:
        """Wait for a token for at most so long; whether there was one. Without it nothing is to be given back."""
        try:
            self._tokens.get(timeout=min(max(0.0, seconds), LONGEST_WAIT_S))
        except queue.Empty:
            return False
        return True
