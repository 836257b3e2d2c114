"""What time it is for the SuperLink, from the ``Date`` of its answers (RFC 9110, 6.6.1).

A node signs the time with every request and the SuperLink refuses one that is five minutes old or five seconds ahead,
so a device whose battery died and that believes in 1970 could never train. The answers came over TLS, from a server
that the authority of the control plane vouches for.

The local clock is kept while it agrees, because the header has whole seconds only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

#: The local clock is right when it is no further from the SuperLink's (seconds): half of what a signature may be ahead.
AGREEMENT_S = 2.5


class ServerClock:
    """May be used by any thread."""

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: ``wall`` the local clock (Unix s); ``monotonic`` seconds that only go forward."""
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: The SuperLink's clock minus the monotonic one; None before the first answer.
        self._ahead_s: float | None = None

    def learn(self, date: str | None) -> None:
        """Take the ``Date`` of an answer that has just come; none, and one that is no date, changes nothing."""
        try:
            seconds = parsedate_to_datetime(date or "").timestamp()
        except (TypeError, ValueError, OverflowError):
            return
        with self._lock:
            self._ahead_s = seconds - self._monotonic()

    def now(self) -> float:
        """Unix seconds by the SuperLink's clock; by the local one while it agrees, and before the first answer."""
        local = self._wall()
        with self._lock:
            if self._ahead_s is None:
                return local
            remote = self._ahead_s + self._monotonic()
        return local if abs(local - remote) <= AGREEMENT_S else remote
