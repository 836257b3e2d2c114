"""Where predictions go: standard output or a topic, as JSON. Used by the one thread that asks the model."""

from __future__ import annotations

import json
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from skerry_agent.errors import DeviceError
from skerry_agent.link.mqtt import Connected, Connection, LinkEvent
from skerry_agent.stream.rows import Keep
from skerry_agent.stream.shutdown import Shutdown

#: Messages that wait for a connection; beyond that the setting says which are dropped.
PENDING = 1024
#: Messages that the broker has not acknowledged.
UNACKNOWLEDGED = 64
#: A pipe that is ready takes so much without blocking (PIPE_BUF, pipe(7)).
_PIPE_BYTES = 4096
_LOOK_S = 0.05


class Sink(Protocol):
    """Takes documents."""

    #: Documents that nobody got.
    undelivered: int

    def emit(self, document: dict[str, Any], *, error: bool) -> None:
        """Hand a prediction or an error over."""
        ...

    def pump(self) -> None:
        """Move on with what waits; called again and again."""
        ...

    def close(self) -> None:
        """Deliver what waits, within the time to finish."""
        ...


def encode(document: dict[str, Any]) -> bytes:
    """One line of JSON, without its end."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


class LineSink:
    """Lines on a descriptor. A slow reader slows the stream down: then the queue of rows fills."""

    def __init__(self, descriptor: int, shutdown: Shutdown) -> None:
        """``descriptor`` stays open."""
        self._descriptor = descriptor
        self._shutdown = shutdown
        self.undelivered = 0

    def emit(self, document: dict[str, Any], *, error: bool) -> None:
        """Write a line, whole unless the stream ends meanwhile.

        Raises:
            DeviceError: Nobody reads any more, or the disk is full.
        """
        left = memoryview(encode(document) + b"\n")
        try:
            while left:
                if self._shutdown.overdue:
                    self.undelivered += 1
                    return
                if select.select([], [self._descriptor], [], _LOOK_S)[1]:
                    left = left[os.write(self._descriptor, left[:_PIPE_BYTES]) :]
        except BlockingIOError:
            self.undelivered += 1
        except OSError as failure:
            said = failure.strerror or str(failure)
            raise DeviceError(f"standard output: {said}", remedy="let something read it") from failure

    def pump(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing waits."""


class _Sent(NamedTuple):
    topic: str
    payload: bytes
    delivered: Callable[[], bool]
    connections: int


class TopicSink:
    """Messages to a topic, errors to another; never retained.

    With QoS 1 what the broker had not acknowledged when a connection broke is published again over the next: at least
    once, in order.
    """

    def __init__(
        self,
        topics: tuple[str, str],
        connect: Callable[[Callable[[LinkEvent], bool]], Connection],
        *,
        qos: int,
        keep: Keep,
        shutdown: Shutdown,
    ) -> None:
        """Connects.

        Args:
            topics: Of predictions and of errors.
            connect: Makes the connection that posts to a function.
            qos: 0 or 1.
            keep: What stays when :data:`PENDING` messages wait: the newest, the oldest, or all: then the stream waits.
            shutdown: How the stream ends.
        """
        self._topics = topics
        self._qos, self._keep, self._shutdown = qos, keep, shutdown
        self._pending: deque[tuple[str, bytes]] = deque()
        self._sent: deque[_Sent] = deque()
        self._connections = 0
        self.undelivered = 0
        self._connection = connect(self._post)
        self._connection.start()

    def emit(self, document: dict[str, Any], *, error: bool) -> None:
        """See :class:`Sink`."""
        while self._keep == "all" and len(self._pending) >= PENDING and not self._shutdown.asked:
            self._shutdown.pause(_LOOK_S)
            self.pump()
        if len(self._pending) >= PENDING:
            self.undelivered += 1
            if self._keep == "oldest":
                return
            self._pending.popleft()
        self._pending.append((self._topics[error], encode(document)))
        self.pump()

    def pump(self) -> None:
        """See :class:`Sink`."""
        connections = self._connections
        while self._sent and self._sent[0].delivered():
            self._sent.popleft()
        again = [sent for sent in self._sent if sent.connections != connections and not sent.delivered()]
        if again:
            self._sent = deque(sent for sent in self._sent if sent.connections == connections)
            if self._qos:
                self._pending.extendleft((sent.topic, sent.payload) for sent in reversed(again))
            else:
                self.undelivered += len(again)
        while self._pending and len(self._sent) < UNACKNOWLEDGED:
            topic, payload = self._pending[0]
            delivered = self._connection.send(topic, payload, qos=self._qos)
            if delivered is None:
                return
            self._pending.popleft()
            self._sent.append(_Sent(topic, payload, delivered, connections))

    def close(self) -> None:
        """See :class:`Sink`."""
        self._shutdown.ask()
        while (self._pending or self._sent) and not self._shutdown.overdue:
            self.pump()
            self._shutdown.pause(_LOOK_S)
        self.undelivered += len(self._pending) + sum(not sent.delivered() for sent in self._sent)
        self._connection.stop()

    def _post(self, event: LinkEvent) -> bool:
        if isinstance(event, Connected):
            self._connections += 1
        return True
