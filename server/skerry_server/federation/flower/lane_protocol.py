"""uvicorn's HTTP/1.1 (0.49.0, pinned) with a short way for large bodies.

An ASGI application gets a body in pieces of 64 KiB, each copied five times and paid for by a pause of the connection
and two turns of the event loop; uvloop besides allots 256 KiB for each TLS record of 16. For the parameters of a model
that is most of what the SuperLink does. Here a request with an announced length has the extension
:data:`BODY_EXTENSION`: TLS then decrypts the rest of its body into one buffer, and a writer gets it from there. The
writer is not asynchronous, so nothing piles up and the connection is read no faster than it writes (a thread for it
costs more than it saves where the cores are few). Everything else is uvicorn's.
``tests/unit/federation/test_lane_protocol.py`` pins what is used of its insides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Name of the extension: ``scope["extensions"][BODY_EXTENSION](write)`` is :meth:`LaneProtocol.pour` of the request.
BODY_EXTENSION = "skerry.body"
#: Size of the buffer (bytes).
BUFFER_BYTES = 1 << 18

Write = Callable[[memoryview], None]


class LaneProtocol(HttpToolsProtocol):
    """One connection."""

    #: A client that sends nothing of a body for so long is gone (seconds).
    stall_s = 60.0
    #: Bytes of the body that is being parsed that have not come yet; None: it has no announced length.
    _left: int | None = None
    _pouring: _Pouring | None = None

    def pour(self, cycle: Any, write: Write) -> asyncio.Future[None]:
        """Give the body of a request, from where it is, to ``write`` instead of ``receive``.

        Args:
            cycle: uvicorn's request, which nobody has received a piece of.
            write: Called in order with every piece, which it must not keep; what it raises ends the connection.

        Returns:
            Done after the last piece; raises what ``write`` raised, or ConnectionError when the client went away.
        """
        over: asyncio.Future[None] = self.loop.create_future()
        if cycle.disconnected:
            over.set_exception(ConnectionError("the client went away"))
            return over
        if cycle.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        begun, cycle.body = cycle.body, bytearray()
        left = self._left if cycle is self.cycle and cycle.more_body else 0
        self._pouring = _Pouring(self, cycle, write, left or 0, over)
        self._pouring.begin(begun)
        return over

    def resume(self, cycle: Any, *, whole: bool) -> None:
        """Parse again what comes, the body of ``cycle`` being over, or never to be finished."""
        self._pouring = None
        self.transport.set_protocol(self)
        self.flow.resume_reading()
        if whole:
            if cycle.more_body:
                self.parser = httptools.HttpRequestParser(self)  # the old one waits for the body that it has not seen
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.on_message_complete()
        else:
            cycle.keep_alive = False

    def on_headers_complete(self) -> None:
        """The request begins: its task runs at the next turn of the loop."""
        super().on_headers_complete()
        length = next((value for name, value in self.headers if name == b"content-length"), None)
        self._left = None if length is None else int(length)
        if self._left is not None:
            extensions: dict[str, Any] = {BODY_EXTENSION: partial(self.pour, self.cycle)}
            self.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        """A piece of a body that is not poured, or of the beginning of one."""
        if self._left is not None:
            self._left -= len(body)
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away."""
        super().connection_lost(exc)
        if self._pouring is not None:
            self._pouring.lost()


class _Pouring(asyncio.BufferedProtocol):
    """Has the connection while a body is poured."""

    def __init__(self, http: LaneProtocol, cycle: Any, write: Write, left: int, over: asyncio.Future[None]) -> None:
        self._http, self._cycle, self._write, self._over = http, cycle, write, over
        self._left = left
        self._buffer = memoryview(bytearray(min(BUFFER_BYTES, left)))
        self._looked_at = -1
        self._watch: asyncio.TimerHandle | None = None

    def begin(self, begun: bytearray) -> None:
        """Write what has come already, and take the connection for the rest."""
        if not self._wrote(memoryview(begun)) or not self._left:
            return
        self._http.transport.set_protocol(self)
        self._http.flow.resume_reading()
        self._look()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: never beyond the body."""
        return self._buffer[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self._left -= nbytes
        self._wrote(self._buffer[:nbytes])

    def pause_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away."""
        self._http.connection_lost(exc)

    def lost(self) -> None:
        """No more will come."""
        self._settle(ConnectionError("the client went away"))

    def _wrote(self, piece: memoryview) -> bool:
        """Write; false when that failed. After the last piece the connection is given back."""
        error: Exception | None = None
        try:
            self._write(piece)
        except Exception as failure:  # it is the application's, which waits for it
            error = failure
        if error is not None or not self._left:
            self._http.resume(self._cycle, whole=error is None)
            self._settle(error)
        return error is None

    def _look(self) -> None:
        """Does anything come?"""
        if self._left == self._looked_at:
            self._http.transport.abort()
            return
        self._looked_at = self._left
        self._watch = self._http.loop.call_later(self._http.stall_s, self._look)

    def _settle(self, error: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)
