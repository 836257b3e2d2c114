"""When a device asks for the chunks of a file that it lacks. Pure; times are monotonic seconds.

A device asks once, then listens. Each good chunk proves that the server is sending, so the device stays quiet; after a
quiet period it asks again, and longer and longer apart while nothing comes.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Quiet time after which a device asks again, first and longest (seconds).
QUIET_S = 2.0
QUIET_CEILING_S = 60.0
#: Wait after the server refused a file (seconds).
REFUSED_S = 30.0


@dataclass
class RequestPacer:
    """Decides for one file.

    Attributes:
        quiet_s: Present quiet period.
        due: When to ask next.
    """

    quiet_s: float = QUIET_S
    due: float = 0.0

    def asked(self, now: float) -> None:
        """A request went out."""
        self.due = now + self.quiet_s
        self.quiet_s = min(QUIET_CEILING_S, self.quiet_s * 2)

    def heard(self, now: float) -> None:
        """A chunk that was missing came."""
        self.quiet_s = QUIET_S
        self.due = now + self.quiet_s

    def refused(self, now: float) -> None:
        """The server cannot serve the file now."""
        self.due = now + REFUSED_S

    def connected(self, now: float) -> None:
        """The connection is new: nothing that was on its way will come."""
        self.quiet_s = QUIET_S
        self.due = now
