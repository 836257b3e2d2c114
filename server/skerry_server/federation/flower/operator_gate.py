"""What lies in front of the SuperLink's listener: nodes may reach the Fleet API, everything else is the operator's.

Flower authenticates nodes on the Fleet API, but with account authentication off (it needs an OpenID provider) whoever
reaches the port may use the Control API: register a node key, start a run, claim its task and send models to the fleet.
:class:`OperatorGate` lets a request through when

- its path is below ``/v1/fleet/`` or is the health check, or
- it carries the operator's secret, compared in constant time;

and it bounds the body of every request, which Flower reads as a whole before it looks at who sent it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from skerry_server.superlink import HEALTH_PATH, SECRET_HEADER

#: Paths that need no secret. They are compared as the router gets them: decoded, and never normalised.
FLEET_PREFIX = "/v1/fleet/"
#: Largest body of a request (bytes); the largest object of a campaign is one array of a model's parameters.
BODY_BYTES = 256 << 20

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyTooLargeError(Exception):
    """A request's body grew beyond the bound while it came in."""


class OperatorGate:
    """An ASGI application around another."""

    def __init__(self, app: App, secret: str, *, body_bytes: int = BODY_BYTES) -> None:
        """Guard ``app``; ``secret`` must not be empty."""
        if not secret:
            raise ValueError("the operator's secret is empty")
        self._app = app
        self._secret = secret.encode()
        self._body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 403 or 413 oneself, or let the request through."""
        if scope["type"] != "http":  # "lifespan": the process passes no WebSockets
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._may(scope["path"], headers):
            await _refuse(send, 401, "this part of the SuperLink is the operator's")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._body_bytes:
            await _refuse(send, 413, f"the body may have {self._body_bytes} bytes")
            return
        await self._pass(scope, receive, send)

    def _may(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if path.startswith(FLEET_PREFIX) or path == HEALTH_PATH:
            return True
        return hmac.compare_digest(headers.get(SECRET_HEADER.encode(), b""), self._secret)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        got, started = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._body_bytes:  # chunked: its length was not announced
                raise BodyTooLargeError
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except BodyTooLargeError:
            if not started:
                await _refuse(send, 413, f"the body may have {self._body_bytes} bytes")


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the body is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
