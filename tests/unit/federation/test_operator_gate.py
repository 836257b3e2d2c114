"""The gate before the SuperLink: what reaches the application behind it, and what is answered for it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from skerry_server.federation.flower.operator_gate import OperatorGate

SECRET = "s3cret"


class Echo:
    """Reads the body as a whole, as Flower does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def ask(
    path: str, *, chunks: tuple[bytes, ...] = (b"",), secret: bytes | None = None, length: bytes | None = None
) -> tuple[int, list[bytes]]:
    """Status of the answer, and what the application got."""
    echo, statuses, left = Echo(), [], list(chunks)
    headers = [] if secret is None else [(b"x-skerry-operator", secret)]
    headers += [] if length is None else [(b"content-length", length)]

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: MutableMapping[str, Any]) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(OperatorGate(echo, SECRET, body_bytes=10)(scope, receive, send))
    status = statuses[0]
    assert isinstance(status, int)
    return status, echo.bodies


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/", "/health"])
def test_nodes_need_no_secret(path: str) -> None:
    assert ask(path) == (200, [b""])


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/fleet", "/v1/FLEET/x", "/health/", "/healthz", "", "/"])
@pytest.mark.parametrize("secret", [None, b"", b"s3cre", b"s3cret ", b"S3CRET", b"\xff"])
def test_everything_else_does(path: str, secret: bytes | None) -> None:
    assert ask(path, secret=secret) == (401, [])
    assert ask(path, secret=b"s3cret") == (200, [b""])


@pytest.mark.parametrize("length", [b"11", b"99999999999999999999", b"-1", b"0x1", b"1_0", b""])
def test_a_body_that_is_announced_too_large_is_not_read(length: bytes) -> None:
    assert ask("/v1/fleet/x", length=length) == (413, [])


def test_a_body_that_grows_too_large_is_given_up() -> None:
    assert ask("/v1/fleet/x", chunks=(b"12345", b"67890")) == (200, [b"1234567890"])
    assert ask("/v1/fleet/x", chunks=(b"12345", b"67890", b"1")) == (413, [])


def test_no_secret_is_no_gate() -> None:
    with pytest.raises(ValueError, match="empty"):
        OperatorGate(Echo(), "")
