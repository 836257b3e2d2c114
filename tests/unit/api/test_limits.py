from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from skerry_server.api.limits import BodyLimit, HardenedHeaders


async def _echo_size(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that swallows every error of reading, as frameworks do."""
    total = 0
    try:
        while True:
            message = await receive()
            total += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        status, body = 200, str(total).encode()
    except Exception:
        status, body = 400, b"could not read"
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-frame-options", b"SAMEORIGIN")]})
    await send({"type": "http.response.body", "body": body})


def _call(app: Any, chunks: list[bytes], headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes, dict[bytes, bytes]]:
    sent: list[Message] = []
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "headers": headers}, receive, send))
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1  # exactly one answer, whatever happened
    body = b"".join(message.get("body", b"") for message in sent)
    return starts[0]["status"], body, dict(starts[0]["headers"])


def test_a_body_of_exactly_the_limit_passes() -> None:
    assert _call(BodyLimit(_echo_size, 10), [b"12345", b"67890"], [(b"content-length", b"10")])[:2] == (200, b"10")


@pytest.mark.parametrize(
    ("chunks", "headers"),
    [
        ([b"1"], [(b"content-length", b"11")]),
        ([b"1"], [(b"content-length", b"minus one")]),
        ([b"123456", b"78901"], []),
        ([b"123456", b"78901"], [(b"content-length", b"2")]),
    ],
)
def test_a_larger_one_is_refused_declared_or_not(chunks: list[bytes], headers: list[tuple[bytes, bytes]]) -> None:
    status, body, _ = _call(BodyLimit(_echo_size, 10), chunks, headers)
    assert status == 413
    assert json.loads(body)["error"]["kind"] == "too-large"


def test_headers_are_added_but_never_replaced() -> None:
    _, _, headers = _call(HardenedHeaders(_echo_size), [], [])
    assert headers[b"x-frame-options"] == b"SAMEORIGIN"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert b"default-src 'none'" in headers[b"content-security-policy"]
