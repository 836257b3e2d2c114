"""What a node of a SuperLink has to do with, whichever way it is connected: its work, and how a connection fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from skerry_contract.campaign import Scalar

#: Longest delay between attempts to reach a SuperLink that is away (seconds).
AWAY_LAST_S = 5.0
#: Delays between attempts of a node that the SuperLink does not know (seconds).
UNKNOWN_FIRST_S, UNKNOWN_LAST_S = 0.3, 30.0


class Worker(Protocol):
    """Carries out instructions: :class:`~skerry_agent.training.worker.CampaignWorker`."""

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        """The answer to a message; raises RefusedError or WireError."""
        ...


class NotRegisteredError(Exception):
    """The SuperLink does not know this node (any more)."""


class RunEndedError(Exception):
    """The run that a message belongs to is over; nobody waits for the reply."""


class LinkError(Exception):
    """The SuperLink cannot be reached, or answered in a way that trying again may mend."""


class LaneAbsentError(Exception):
    """The SuperLink is not ours: it has no lane."""


def pause(delay_s: float, stop: threading.Event, leave: Callable[[], bool]) -> None:
    """Wait, but not for somebody who has to go."""
    until = time.monotonic() + delay_s
    while (left := until - time.monotonic()) > 0 and not leave():
        if stop.wait(min(1.0, left)):
            return
