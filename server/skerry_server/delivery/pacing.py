"""How fast a file is broadcast, and how many chunks one device is sent alone. Pure; times are monotonic seconds.

*Broadcast.* The server runs at most :data:`LEAD` chunks ahead of the slowest quartile. A device's lead is the number of
broadcasts since the oldest one that it may still get and has not confirmed, so the rate follows from the devices'
reports, as a sender's follows from acknowledgements in TCP. Not everybody reports: with more than :data:`SAMPLE`
devices a sample speaks for all (the idea of TFMCC, RFC 4654), and three quarters of it must keep up. The lead stays
below what the broker queues for a client, so a device in pace loses nothing there. One that has not moved for
:data:`STALL_S` while it held the others up no longer counts; it is repaired when it asks again.

*Alone.* A device is sent as many chunks as it can take before it has confirmed any. That window opens like TCP's slow
start (RFC 5681): two chunks, twice as many with every report of progress, half as many after a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

#: Broadcast chunks that the slowest quartile may be behind: 2 MB, half of what the broker queues for a client.
LEAD = 16
#: Devices of a file that report their progress.
SAMPLE = 32
#: A device of the sample reports after so many new chunks.
REPORT_EVERY = 8
#: How long the pace waits for a device that does not move (seconds).
STALL_S = 4.0
#: Chunks that a device is sent alone at first, and at most, before it confirms.
FIRST_WINDOW = 2
LARGEST_WINDOW = 64
#: What a byte out of the server costs, in bytes from the broker to a device.
SERVER_BYTE_COST = 32


def broadcast_from(audience: int) -> int:
    """How many devices must lack a chunk for a broadcast to be cheaper than sending it to each alone; at least 2.

    A broadcast leaves the server once and the broker once per listener, who may have it already; alone it leaves
    both once for each device that lacks it: ``w + audience <= lacking * (w + 1)`` with w = :data:`SERVER_BYTE_COST`.

    >>> [broadcast_from(audience) for audience in (1, 10, 100, 500, 10_000)]
    [2, 2, 4, 17, 304]
    """
    return max(2, math.ceil((SERVER_BYTE_COST + audience) / (SERVER_BYTE_COST + 1)))


def quartile_lead(leads: Iterable[int]) -> int:
    """Lead over the device at the boundary of the slowest quartile; over the slowest one of fewer than four; 0 of none.

    >>> quartile_lead([1, 2, 3, 40]), quartile_lead([1, 40]), quartile_lead([])
    (3, 40, 0)
    """
    ordered = sorted(leads, reverse=True)
    return ordered[len(ordered) // 4] if ordered else 0


@dataclass
class Window:
    """What one device may be sent alone without having confirmed it.

    Attributes:
        most: What the device can take.
        size: What it is trusted with now.
    """

    most: int
    size: int = field(default=FIRST_WINDOW)

    def allow(self, most: int) -> None:
        """The device says how much it can take; 0 is taken for 1."""
        self.most = max(1, min(LARGEST_WINDOW, most))
        self.size = min(self.size, self.most)

    def confirmed(self) -> None:
        """Some of it arrived."""
        self.size = min(self.most, self.size * 2)

    def lost(self) -> None:
        """Some of it did not arrive."""
        self.size = max(1, self.size // 2)

    @property
    def report_every(self) -> int:
        """After how many chunks the device should confirm, so that the window never runs dry."""
        return max(1, self.size // 2)
