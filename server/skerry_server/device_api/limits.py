"""Bounds on what a device sends: how large a body, and how long it may take to come."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry_server.device_api.problems import answer

#: Largest body (bytes).
BODY_BYTES = 64 << 10
#: How long a body may take to arrive (seconds).
BODY_S = 20.0


class _BodyError(Exception):
    """The body is refused.

    Attributes:
        status: HTTP status.
        reason: Why.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


class BodyBounds:
    """Refuses a body that is too large (413) or too slow (408), whatever the application makes of its failed read."""

    def __init__(self, app: ASGIApp, *, limit: int = BODY_BYTES, seconds: float = BODY_S) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        until = time.monotonic() + self._seconds
        received, complete, begun = 0, False, False
        refused: _BodyError | None = None

        async def bounded_receive() -> Message:
            nonlocal received, complete, refused
            if complete:  # what is waited for now is that the client goes away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError as error:
                refused = _BodyError(408, f"the body did not arrive within {self._seconds:g} s")
                raise refused from error
            received += len(message.get("body", b""))
            if received > self._limit:
                refused = _BodyError(413, f"the body has more than {self._limit} bytes")
                raise refused
            complete = not message.get("more_body", False)
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal begun
            if refused is None:
                begun = True
                await send(message)

        with contextlib.suppress(_BodyError):
            await self._app(scope, bounded_receive, guarded_send)
        if refused is not None and not begun:
            refusal = answer(refused.status, refused.reason)
            refusal.headers["connection"] = "close"
            await refusal(scope, receive, send)
