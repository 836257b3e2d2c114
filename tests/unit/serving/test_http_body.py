"""Bodies are bounded one by one and all together, packed or not."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import MutableMapping
from typing import Any

import pytest

from skerry_agent.engine.errors import OverloadedError, SchemaError
from skerry_agent.serving.errors import TooLargeError, UnsupportedEncodingError
from skerry_agent.serving.http_body import Bodies, unpack


class Sender:
    """A client that sends parts; ``None`` hangs up. It can wait in the middle."""

    def __init__(self, *parts: bytes | None, gate: asyncio.Event | None = None) -> None:
        self._parts = list(parts)
        self._gate = gate
        self.sent = 0

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._gate is not None and self.sent:
            await self._gate.wait()
        part = self._parts[self.sent]
        self.sent += 1
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": self.sent < len(self._parts)}


def receive(sender: Sender, headers: dict[bytes, bytes] | None = None, limit: int = 10) -> bytes:
    return asyncio.run(Bodies().receive(sender, headers or {}, limit))


@pytest.mark.parametrize("parts", [(b"",), (b"1234567890",), (b"12345", b"", b"67890")])
def test_bodies_up_to_the_limit(parts: tuple[bytes, ...]) -> None:
    assert receive(Sender(*parts)) == b"".join(parts)


def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    sender = Sender(b"12345", b"678901", b"more", b"and more")
    with pytest.raises(TooLargeError):
        receive(sender)
    assert sender.sent == 2


@pytest.mark.parametrize("declared", [b"11", b"9" * 30])
def test_a_declared_size_over_the_limit_is_not_read_at_all(declared: bytes) -> None:
    sender = Sender(b"1")
    with pytest.raises(TooLargeError):
        receive(sender, {b"content-length": declared})
    assert sender.sent == 0


def test_a_client_that_hangs_up() -> None:
    with pytest.raises(SchemaError, match="5 bytes, then a closed connection"):
        receive(Sender(b"12345", None, b"x"))


def test_all_bodies_together_are_bounded() -> None:
    async def run() -> None:
        bodies, gate = Bodies(total_bytes=10), asyncio.Event()
        first = asyncio.create_task(bodies.receive(Sender(b"12345678", b"9", gate=gate), {}, 20))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await bodies.receive(Sender(b"1234", b"5"), {}, 20)
        gate.set()
        assert await first == b"123456789"
        assert await bodies.receive(Sender(b"123456789", b"012345"), {}, 20) == b"123456789012345"

    asyncio.run(run())


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("encoding", [b"gzip", b" Deflate "])
def test_packed(pack: Any, encoding: bytes) -> None:
    assert receive(Sender(pack(b"1234567890")), {b"content-encoding": encoding}, limit=40) == b"1234567890"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (gzip.compress(bytes(1000)), TooLargeError),
        (gzip.compress(b"123")[:-1], SchemaError),
        (gzip.compress(b"123") + b"x", SchemaError),
        (b"", SchemaError),
        (b"plain", SchemaError),
    ],
)
def test_packed_wrongly(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        unpack(data, 100)


def test_another_packing() -> None:
    with pytest.raises(UnsupportedEncodingError):
        receive(Sender(b"x"), {b"content-encoding": b"br"})
