"""Empties the outbox over the control connection; deletes a message only when the control plane has acknowledged it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from skerry_agent.errors import DeviceError
from skerry_agent.link.drain import WINDOW, Drain
from skerry_agent.link.outbox import Outbox
from skerry_contract.errors import WireError
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.telemetry_pb2 import UplinkAck
from skerry_contract.wire import parse_message

log = logging.getLogger(__name__)
#: How long the broker keeps a message that the control plane does not fetch (seconds).
EXPIRY_S = 86_400
#: Most numbers in one acknowledgement.
ACK_NUMBERS = 4_096


class Publisher(Protocol):
    """What can send a message."""

    @property
    def ready(self) -> bool:
        """Whether there is a connection."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        """Send with QoS 1; False if that cannot be done now."""
        ...


class Uplink:
    """Owned by the control loop."""

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        *,
        device_id: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._topic = device_topic(device_id, DeviceTopic.UP)
        self._drain = Drain()
        self._monotonic = monotonic

    def connected(self) -> None:
        """The connection is new."""
        self._drain.reconnected()

    def step(self) -> None:
        """Send what may be sent."""
        if not self._publisher.ready:
            return
        try:
            messages = {message.sequence: message for message in self._outbox.pending(WINDOW)}
        except DeviceError as error:
            log.error("%s", error)
            return
        now = self._monotonic()
        for number in self._drain.to_send(messages, now):
            if not self._publisher.publish(self._topic, messages[number].SerializeToString(), expiry_s=EXPIRY_S):
                return
            self._drain.sent(number, now)

    def acknowledged(self, payload: bytes) -> None:
        """Take in an UplinkAck from the wire.

        Raises:
            WireError: It is malformed.
            DeviceError: The disk failed; the messages stay and will be acknowledged again.
        """
        ack = parse_message(UplinkAck, payload)
        if len(ack.sequences) > ACK_NUMBERS:
            raise WireError("ack.sequences", expected=f"at most {ACK_NUMBERS}", got=len(ack.sequences))
        self._outbox.acknowledge(ack.outbox_id, ack.sequences)
