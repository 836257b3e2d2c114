"""uvicorn's connection, with bounds on what a client may make the door wait for.

uvicorn bounds idle connections, but neither the time that a request may take to arrive nor the size of its head. Here
a request that does not arrive in time is answered with 408, a head that does not end with 431, and when all
connections are taken, a new client gets the place of the one that has kept the door waiting longest: clients that
trickle (the "slow loris") cost nobody else anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        request_seconds: Time from the first byte of a request, or from the connection, until its last byte (s).
        head_bytes: Largest request line and headers together (bytes).
        most: Connections at the same time.
        sweep_seconds: Time between two looks at who is overdue (s).
        waiting_since: Since when its client owes bytes (monotonic, s); None while a request is being answered.
        idle_since: Since when it has had nothing to do.
    """

    request_seconds: ClassVar[float] = 20.0
    head_bytes: ClassVar[int] = 64 << 10
    most: ClassVar[int] = 256
    sweep_seconds: ClassVar[float] = 1.0
    waiting_since: float | None = None
    idle_since: float = 0.0
    _head_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A new client; the one that has kept us waiting longest makes room if need be."""
        self.waiting_since = self.idle_since = time.monotonic()
        if len(self.connections) >= self.most:
            make_room(self.connections)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes and not self.transport.is_closing():
                self.turn_away(b"431 Request Header Fields Too Large", f"head: larger than {self.head_bytes} bytes")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._head_bytes = 0
        self.waiting_since = time.monotonic()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self.waiting_since = None
        self.idle_since = time.monotonic()
        super().on_message_complete()

    def turn_away(self, status: bytes, error: str) -> None:
        """Answer and hang up; an answer that is under way is cut."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = b'{"error":"%s"}' % error.encode()
            head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(body)) + body)
        self.transport.close()

    def overdue(self, now: float) -> bool:
        """Whether its client has kept the door waiting too long, be it with a request or in taking an answer."""
        if self.transport.is_closing() and self.waiting_since is None:
            self.waiting_since = now
        return self.waiting_since is not None and now - self.waiting_since > self.request_seconds


def sweep(connections: Collection[Any]) -> None:
    """End connections that are overdue."""
    now = time.monotonic()
    for connection in list(connections):
        if isinstance(connection, BoundedProtocol) and connection.overdue(now):
            if connection.transport.is_closing():
                connection.transport.abort()  # it does not even take its answer
            else:
                connection.turn_away(
                    b"408 Request Timeout", f"the request did not arrive within {connection.request_seconds:g} s"
                )


def make_room(connections: set[Any]) -> None:
    """End the connection that has kept the door waiting longest, or the one that has been idle longest."""
    bounded = [connection for connection in connections if isinstance(connection, BoundedProtocol)]
    waiting = [connection for connection in bounded if connection.waiting_since is not None]
    idle = [connection for connection in bounded if connection.cycle is None or connection.cycle.response_complete]
    for group in (waiting, idle):
        if group:
            oldest = min(group, key=lambda connection: connection.waiting_since or connection.idle_since)
            oldest.transport.abort()
            connections.discard(oldest)  # at once; uvicorn does so when the loop tells that it is lost
            return
