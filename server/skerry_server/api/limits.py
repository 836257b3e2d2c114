"""ASGI middleware that bounds the size of a request and hardens every answer."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry_server.api.problems import Problem

#: Largest request body (bytes).
BODY_BYTES = 1 << 20

#: What a browser may do with an answer of ours that does not say otherwise.
_HEADERS: dict[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


class _TooLargeError(Exception):
    """The body went over the limit while it was read."""


class BodyLimit:
    """Refuses bodies of more than ``limit`` bytes with 413, by their declared size or as they come."""

    def __init__(self, app: ASGIApp, limit: int = BODY_BYTES) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            await self._refuse(send, declared.decode("latin-1"))
            return
        received = 0
        refused = False

        async def bounded_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooLargeError
            return message

        async def guarded_send(message: Message) -> None:
            # Whatever the application answers to a body that was cut off, the caller is told about the size.
            nonlocal refused
            if received <= self._limit:
                await send(message)
            elif not refused:
                refused = True
                await self._refuse(send, f"more than {self._limit} bytes")

        await self._app(scope, bounded_receive, guarded_send)

    async def _refuse(self, send: Send, got: str) -> None:
        expected = f"at most {self._limit} bytes"
        problem = Problem("too-large", f"the body is too large: expected {expected}", "body", expected, got[:200])
        body = json.dumps(problem.document()).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class HardenedHeaders:
    """Adds the protective headers that an answer does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def hardened_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                missing = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in present]
                message = {**message, "headers": [*message["headers"], *missing]}
            await send(message)

        await self._app(scope, receive, hardened_send if scope["type"] == "http" else send)
