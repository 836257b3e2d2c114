"""When a device says what it lacks of a file. Pure; times are monotonic seconds.

A device asks once, then listens. It speaks again

* when it is asked to report its progress: after as many new chunks as the server wants, or a moment after the last of
  fewer; so the server knows how fast it may go;
* rarely, while chunks come and nobody asks for reports, so that the server knows that it listens;
* when nothing has come for longer than the pace so far explains, and longer and longer apart while nothing comes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Quiet time after which a device asks again: before the first chunk, shortest and longest (seconds).
QUIET_S = 2.0
QUIET_FLOOR_S = 1.0
QUIET_CEILING_S = 60.0
#: A gap between chunks is called quiet when it is so many times the longest of late.
GAPS = 2.0
#: How much longer it is after every request that brought nothing.
GROWTH = 1.5
#: How long a device waits for more chunks before it reports fewer than it was asked for (seconds).
REPORT_S = 0.1
#: Longest silence while chunks come (seconds).
ALIVE_S = 30.0
#: Wait after the server refused a file (seconds).
REFUSED_S = 30.0


@dataclass
class RequestPacer:
    """Decides for one file.

    Attributes:
        spread: In 0 to 1; differs from device to device, so that not all of them ask in the same moment.
        quiet_s: Present quiet period.
    """

    spread: float = 0.0
    quiet_s: float = QUIET_S
    _quiet_due: float = 0.0
    _report_due: float = math.inf
    _asked_at: float | None = None
    _heard_at: float | None = None
    _gap_s: float = 0.0
    _asked_in_vain: bool = False
    _unreported: int = 0

    @property
    def due(self) -> float:
        """When to speak next."""
        return min(self._quiet_due, self._report_due)

    def quiet_for(self, now: float) -> float:
        """For how long nothing has come; 0 before the device has asked at all."""
        since = self._asked_at if self._heard_at is None else self._heard_at
        return 0.0 if since is None else now - since

    def asked(self, now: float) -> None:
        """The server was told what is missing."""
        if now >= self._quiet_due:
            self._asked_in_vain = True
            self._expect(now)
            self.quiet_s = min(QUIET_CEILING_S, self.quiet_s * GROWTH)
        self._asked_at = now
        self._report_due = math.inf
        self._unreported = 0

    def heard(self, now: float, *, report_every: int = 0) -> None:
        """A chunk that was missing came.

        After a quiet time that ended with a request, nobody knows which of the two brought the chunk, so the gap says
        nothing and the longer quiet period stays (Karn's algorithm for round trips, SIGCOMM 1987).

        Args:
            now: The time.
            report_every: The server wants a report after so many; 0 if not of this device.
        """
        if self._heard_at is None:
            self.quiet_s = QUIET_S
        elif not self._asked_in_vain:
            gap = now - self._heard_at
            self._gap_s = max(gap, 0.75 * self._gap_s + 0.25 * gap)
            self.quiet_s = min(QUIET_CEILING_S, max(QUIET_FLOOR_S, GAPS * self._gap_s))
        self._asked_in_vain = False
        self._heard_at = now
        self._unreported += 1
        self._expect(now)
        if report_every:
            self._report_due = now if self._unreported >= report_every else now + REPORT_S
        else:
            spoke = now if self._asked_at is None else self._asked_at
            self._report_due = max(now, spoke + ALIVE_S * (1.0 + self.spread))

    def _expect(self, now: float) -> None:
        self._quiet_due = now + self.quiet_s * (1.0 + self.spread / 4)

    def refused(self, now: float) -> None:
        """The server cannot serve the file now."""
        self._quiet_due = now + REFUSED_S
        self._report_due = math.inf

    def connected(self, now: float) -> None:
        """The connection is new: nothing that was on its way will come."""
        self.quiet_s = QUIET_S
        self._quiet_due = now
