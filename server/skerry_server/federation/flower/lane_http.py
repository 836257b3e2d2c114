"""The HTTP of the lane: reading bodies, answering, refusing, and waiting with a client that may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from skerry_contract import lane
from skerry_server.federation.flower.lane_protocol import BODY_EXTENSION
from skerry_server.federation.flower.operator_gate import Receive, Scope, Send


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        super().__init__(reason)


class Bell:
    """Wakes whoever waits for a name; one waits at a time, a second one sends the first away."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Event] = {}

    def ring(self, name: str) -> None:
        """Wake the one who waits."""
        event = self._waiting.get(name)
        if event is not None:
            event.set()

    async def wait(self, name: str, seconds: float, gone: asyncio.Future[Any]) -> None:
        """Until it rings, the time is over, or the client is ``gone``."""
        self.ring(name)
        event = self._waiting[name] = asyncio.Event()
        ringing = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({ringing, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ringing.cancel()
            if self._waiting.get(name) is event:
                del self._waiting[name]


def header(scope: Scope, name: str) -> str | None:
    """The first value of a header."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)


async def read_body(receive: Receive, *, most: int = lane.FRAME_BYTES) -> bytes:
    """The body of a request; raises Refusal when it is too large or ends early."""
    pieces: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the body ended early")
        pieces.append(message.get("body", b""))
        total += len(pieces[-1])
        if total > most:
            raise Refusal(413, f"a frame has at most {most} bytes here")
        if not message.get("more_body", False):
            return b"".join(pieces)


async def pour_body(scope: Scope, receive: Receive, write: Callable[[bytes | memoryview], None]) -> None:
    """Give the body of a request to ``write``, piece by piece, by the short way where the server has it.

    Raises:
        ConnectionError: The client went away.
    """
    pour = scope.get("extensions", {}).get(BODY_EXTENSION)
    if pour is not None:
        await pour(write)
        return
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client went away")
        write(message.get("body", b""))
        if not message.get("more_body", False):
            return


async def gone(receive: Receive) -> None:
    """Until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(send: Send, status: int, body: bytes, **headers: str) -> None:
    """Answer; underscores in names of headers are dashes."""
    listed = [(b"content-length", str(len(body)).encode())]
    listed += [(name.replace("_", "-").encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
