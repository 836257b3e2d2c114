"""How the stream ends: asked to once, and then given a bounded time to finish what it has.

Invariant: no lock, so that a signal handler may ask at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Time for what waits to be answered and delivered, after the stream was asked to end (s).
DRAIN_S = 5.0
#: How soon a pause notices (s).
_LOOK_S = 0.05


class Shutdown:
    """Asked from a signal handler or any thread, looked at by everybody."""

    def __init__(
        self,
        *,
        drain_s: float = DRAIN_S,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nobody has asked yet."""
        self._drain_s = drain_s
        self._monotonic, self._sleep = monotonic, sleep
        self._until: float | None = None

    def ask(self) -> None:
        """End; asking again changes nothing."""
        if self._until is None:
            self._until = self._monotonic() + self._drain_s

    @property
    def asked(self) -> bool:
        """Whether the stream shall end."""
        return self._until is not None

    @property
    def overdue(self) -> bool:
        """Whether the time to finish is over."""
        return self._until is not None and self._monotonic() >= self._until

    def pause(self, seconds: float) -> None:
        """Wait; once the stream is asked to end, only for a moment."""
        until = self._monotonic() + seconds
        while True:
            left = until - self._monotonic()
            if left <= 0:
                return
            self._sleep(min(left, _LOOK_S))
            if self.asked:
                return
