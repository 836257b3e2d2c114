"""Bodies that are poured out: whole and in order, however they come; uvicorn goes on behind them as if nothing was."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
import uvloop

from skerry_server.federation.flower.lane_http import pour_body, respond
from skerry_server.federation.flower.lane_protocol import BODY_EXTENSION, BUFFER_BYTES, LaneProtocol

LARGE = os.urandom(3 * BUFFER_BYTES + 12_345)


class App:
    """Answers with the digest of a body; "/refuse" fails at the second piece, "/slow" looks late at the first."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.late = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        digest, pieces = hashlib.sha256(), 0

        def write(piece: bytes | memoryview) -> None:
            nonlocal pieces
            self.begun.set()
            digest.update(piece)
            pieces += 1
            if scope["path"] == "/refuse" and pieces == 2:
                raise OSError("the disk is full")

        if scope["path"] == "/slow":
            await self.late.wait()
        try:
            await pour_body(scope, receive, write)
        except OSError as error:  # ConnectionError is one
            self.outcomes.append(f"{type(error).__name__}: {error}")
            await respond(send, 507, b"")
            return
        self.outcomes.append("whole")
        await respond(send, 200, digest.hexdigest().encode())


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, App], Awaitable[None]]


class Impatient(LaneProtocol):
    """Gives a silent client up at once."""

    stall_s = 0.01


def talk(conversation: Talk, protocol: type[LaneProtocol] = LaneProtocol) -> App:
    """Have a conversation with a server; what its application saw."""

    async def run() -> App:
        loop, app = asyncio.get_running_loop(), App()
        config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, ws="none")
        config.load()
        state = uvicorn.server.ServerState()
        server = await loop.create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            await conversation(reader, writer, app)
            writer.close()
            while state.connections or state.tasks:
                await asyncio.sleep(0.005)
        server.close()
        return app

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"PUT {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
    return int(head.split()[1]), await reader.readexactly(length)


def digest_of(body: bytes) -> tuple[int, bytes]:
    return 200, hashlib.sha256(body).hexdigest().encode()


@pytest.mark.parametrize("body", [b"", b"x", LARGE[:BUFFER_BYTES], LARGE], ids=["none", "one", "a buffer", "large"])
def test_a_body_arrives_whole_and_the_connection_serves_the_next_request(body: bytes) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        for sent in (body, b"next", LARGE):
            writer.write(request("/", sent) + sent)
            assert await answer(reader) == digest_of(sent)

    assert talk(conversation).outcomes == ["whole"] * 3


def test_requests_that_come_in_one_go_are_not_mixed_up() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        writer.write(b"".join(request("/", sent) + sent for sent in (LARGE, b"two", LARGE[::-1])))
        for sent in (LARGE, b"two", LARGE[::-1]):
            assert await answer(reader) == digest_of(sent)

    talk(conversation)


def test_what_came_before_the_application_looked_is_poured_first() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        writer.write(request("/slow", LARGE) + LARGE)
        app.late.set()
        assert await answer(reader) == digest_of(LARGE)
        writer.write(request("/", LARGE, "expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(LARGE)
        assert await answer(reader) == digest_of(LARGE)

    talk(conversation)


def test_a_body_without_an_announced_length_goes_the_long_way() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        writer.write(b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE), LARGE))
        assert await answer(reader) == digest_of(LARGE)

    assert talk(conversation).outcomes == ["whole"]


def test_a_client_that_goes_away_in_the_middle_is_told_to_the_application() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        writer.write(request("/", LARGE) + LARGE[: BUFFER_BYTES + 1])
        await app.begun.wait()
        writer.transport.abort()

    assert talk(conversation).outcomes == ["ConnectionError: the client went away"]


def test_a_client_that_sends_nothing_more_is_given_up() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        writer.write(request("/", LARGE) + LARGE[:-1])
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(reader)

    assert talk(conversation, Impatient).outcomes == ["ConnectionError: the client went away"]


def test_a_writer_that_fails_is_heard_of_and_the_connection_ends() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: App) -> None:
        writer.write(request("/refuse", LARGE) + LARGE)
        assert await answer(reader) == (507, b"")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)

    assert talk(conversation).outcomes == ["OSError: the disk is full"]


def test_another_server_has_the_long_way() -> None:
    """``pour_body`` with plain ASGI."""
    messages = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c"},
        {"type": "http.disconnect"},
    ]
    got = bytearray()

    async def receive() -> Any:
        return messages.pop(0)

    asyncio.run(pour_body({"extensions": {}}, receive, got.extend))
    assert got == b"abc"
    with pytest.raises(ConnectionError):
        asyncio.run(pour_body({}, receive, got.extend))
    assert BODY_EXTENSION == "skerry.body"
