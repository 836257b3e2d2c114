"""The node of this device: on the lane of our own SuperLink, or as a Flower node of one that has none.

flwr is loaded for the second only: a second of imports and sixty megabytes that most devices never need.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from skerry_agent.training.lane_node import LaneNode
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.node_link import LaneAbsentError, Worker
from skerry_agent.training.server_clock import ServerClock
from skerry_agent.training.stock_questions import ActiveStep

logger = logging.getLogger(__name__)

#: How long a SuperLink without a lane is believed to have none (seconds).
BELIEVED_S = 900.0


class TrainingNode:
    """Connects a worker to a SuperLink for as long as it is told to."""

    def __init__(
        self,
        address: str,
        key: ec.EllipticCurvePrivateKey,
        hint: NodeHint,
        worker: Worker,
        *,
        tls: Callable[[], ssl.SSLContext],
        on_link: Callable[[int, str], None] = lambda node_id, detail: None,
        clock: ServerClock | None = None,
        active: Callable[[], ActiveStep] | None = None,
    ) -> None:
        """Prepare a node.

        Args:
            address: host:port of the SuperLink.
            key: The device's node key (EC P-384), whose public half the control plane has registered.
            hint: Which node it was the last time, for a SuperLink without a lane.
            worker: Carries out instructions.
            tls: Makes the context of a connection.
            on_link: Hears the node's identifier, 0 while there is none, and what it waits for.
            clock: Tells the SuperLink's time; made from this machine's clocks if there is none.
            active: What the device can train now, for a server that knows nothing of us.
        """
        self._address, self._key, self._hint, self._worker = address, key, hint, worker
        self._tls, self._on_link, self._clock, self._active = tls, on_link, clock or ServerClock(), active

    def run(self, stop: threading.Event, leave: Callable[[], bool] = lambda: False) -> None:
        """Serve until ``stop`` is set or ``leave()`` is true.

        Raises:
            DeviceError: The device has no authority to trust.
        """
        lane = LaneNode(self._address, self._key, self._worker, tls=self._tls, on_link=self._on_link, clock=self._clock)
        while not stop.is_set() and not leave():
            try:
                lane.run(stop, leave)
            except LaneAbsentError as error:
                logger.info("the SuperLink at %s has no lane (%s): a Flower node joins it", self._address, error)
                self._run_flower(stop, leave)

    def _run_flower(self, stop: threading.Event, leave: Callable[[], bool]) -> None:
        from skerry_agent.training.flower_node import FlowerNode

        until = time.monotonic() + BELIEVED_S
        node = FlowerNode(
            self._address,
            self._key,
            self._hint,
            self._worker,
            tls=self._tls,
            on_link=self._on_link,
            clock=self._clock,
            active=self._active,
        )
        node.run(stop, lambda: time.monotonic() > until or leave())
