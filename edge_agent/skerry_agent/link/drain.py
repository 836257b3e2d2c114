"""Which messages of the outbox are sent now. Pure; times are monotonic seconds.

In order, at most a window of them without the control plane's acknowledgement. One whose acknowledgement does not come
in time is sent again; so is everything after a reconnect. The control plane ingests each (outbox, sequence) once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: Messages on their way at once.
WINDOW = 32
#: After this time without an acknowledgement a message is sent again (seconds).
ACK_S = 10.0


@dataclass
class Drain:
    """Remembers what is on its way.

    Attributes:
        in_flight: When each sequence number was sent last.
    """

    in_flight: dict[int, float] = field(default_factory=dict)

    def to_send(self, pending: Iterable[int], now: float) -> list[int]:
        """Numbers to send now, of the oldest pending ones in order; what is not pending any more is forgotten."""
        window = list(pending)[:WINDOW]
        self.in_flight = {number: at for number, at in self.in_flight.items() if number in set(window)}
        return [number for number in window if now - self.in_flight.get(number, -ACK_S) >= ACK_S]

    def sent(self, number: int, now: float) -> None:
        """A message went out."""
        self.in_flight[number] = now

    def reconnected(self) -> None:
        """Whatever was on its way may be lost."""
        self.in_flight.clear()
