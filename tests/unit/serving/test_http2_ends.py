"""How a connection of the gRPC door, and a request on it, may end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from skerry_agent.serving import http2
from unit.serving.http2_frames import (
    PADDED,
    PING,
    PREFACE,
    SETTINGS_ACK,
    Client,
    Code,
    Type,
    body,
    data,
    ended,
    fields_of,
    frame,
    headers,
    message,
    of,
    request,
    reset,
    settings,
    window,
)

pytestmark = pytest.mark.skipif(not http2.COMPILED, reason="nghttp2 or a compiler was not there at installation")


@pytest.fixture
def client() -> Iterator[Client]:
    with contextlib.closing(Client()) as made:
        yield made


def test_nothing_came_a_hangup_and_a_broken_connection(client: Client) -> None:
    connection, server = client.connection, client.server.fileno()
    with pytest.raises(BlockingIOError):
        connection.receive(server)
    client.say(PING)
    client.socket.close()
    with pytest.raises(BrokenPipeError):
        connection.flush(server)
    with contextlib.suppress(ConnectionResetError):
        assert connection.receive(server) is None
    for bad in (-1, 2**31, 2**64):
        with pytest.raises((ValueError, OverflowError)):
            connection.receive(bad)
    with pytest.raises(OSError, match="Bad file descriptor"):
        connection.receive(10**6)


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(40), PREFACE[:-1] + b"\0"])
def test_another_protocol(hello: bytes) -> None:
    with contextlib.closing(Client(hello=b"")) as client:
        for _ in range(2):
            with pytest.raises(ValueError, match="magic"):
                client.say(hello)
        assert client.connection.held == 0


def test_a_preface_without_settings() -> None:
    with contextlib.closing(Client(hello=PREFACE + PING)) as client:
        assert ended(client.hear()) == Code.PROTOCOL_ERROR
        assert client.connection.finished


def test_go_away_lets_what_is_under_way_go_on(client: Client) -> None:
    client.say(request(1) + headers(3))
    client.connection.go_away()
    client.connection.go_away()
    assert {ended([one]) for one in of(client.hear(), Type.GOAWAY)} == {Code.NO_ERROR}
    assert client.say(request(5)) == []
    client.connection.answer(1, b"one")
    assert body(client.hear(), 1) == message(b"one")
    assert len(client.say(data(3, message(b"")))) == 1
    client.connection.answer(3, b"three")
    before = client.connection.finished
    assert body(client.hear(), 3) == message(b"three")
    assert (before, client.connection.finished) == (False, True)
    client.connection.go_away()


def test_go_away_of_an_idle_connection_and_by_the_client(client: Client) -> None:
    client.connection.go_away()
    before = (client.connection.idle, client.connection.finished)
    client.hear()
    assert (before, client.connection.idle, client.connection.finished) == ((False, False), True, True)
    other = Client()
    other.say(frame(Type.GOAWAY, 0, 0, bytes(8) + b"bye"))
    assert other.connection.finished
    other.close()


@pytest.mark.parametrize("moment", ["headers", "prefix", "message", "told", "answered", "partly sent"])
def test_a_reset_at_every_moment(client: Client, moment: str) -> None:
    payload = bytes(100_000)  # more than the window
    before = sys.getrefcount(payload)
    whole = message(b"abc")
    steps = {"headers": b"", "prefix": whole[:3], "message": whole[:6]}
    client.say(headers(1))
    if moment in steps:
        client.say(data(1, steps[moment], end=False))
    else:
        client.say(data(1, whole))
    if moment in ("answered", "partly sent"):
        client.connection.answer(1, payload)
    if moment == "partly sent":
        assert 0 < len(body(client.hear(), 1)) < len(payload)
    assert client.say(reset(1)) == []
    assert (client.connection.held, client.connection.open_since_ns) == (0, None)
    assert sys.getrefcount(payload) == before
    client.connection.answer(1, payload)
    assert sys.getrefcount(payload) == before
    assert {one.stream for one in client.hear()} <= {0}
    assert client.connection.idle
    assert len(client.say(request(3))) == 1


def test_what_is_given_up_in_the_same_breath_is_not_told(client: Client) -> None:
    got = client.say(request(1) + request(3) + reset(1) + request(5) + reset(3) + request(7) + reset(7))
    assert [one.stream for one in got] == [5]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(data(1, b"more"), Code.STREAM_CLOSED, id="DATA after the end"),
        pytest.param(headers(1), Code.STREAM_CLOSED, id="HEADERS after the end"),
        pytest.param(headers(2), Code.PROTOCOL_ERROR, id="a stream of the server"),
        pytest.param(headers(0), Code.PROTOCOL_ERROR, id="HEADERS of no stream"),
        pytest.param(data(9, b""), Code.PROTOCOL_ERROR, id="DATA of an idle stream"),
        pytest.param(reset(9), Code.PROTOCOL_ERROR, id="reset of an idle stream"),
        pytest.param(window(0, 0), Code.PROTOCOL_ERROR, id="window of 0"),
        pytest.param(window(1, 0), Code.PROTOCOL_ERROR, id="window of 0 of a stream"),
        pytest.param(window(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR, id="window too large"),
        pytest.param(frame(Type.SETTINGS, 0, 0, b"x"), Code.FRAME_SIZE_ERROR, id="short SETTINGS"),
        pytest.param(settings(INITIAL_WINDOW_SIZE=2**31), Code.FLOW_CONTROL_ERROR, id="initial window"),
        pytest.param(settings(MAX_FRAME_SIZE=1), Code.PROTOCOL_ERROR, id="frames of a byte"),
        pytest.param(SETTINGS_ACK, Code.PROTOCOL_ERROR, id="ACK of nothing"),
        pytest.param(frame(Type.PING, 0, 0, b"short"), Code.FRAME_SIZE_ERROR, id="short PING"),
        pytest.param(frame(Type.CONTINUATION, 4, 1), Code.PROTOCOL_ERROR, id="CONTINUATION of nothing"),
        pytest.param(frame(Type.PUSH_PROMISE, 4, 1, bytes(4)), Code.PROTOCOL_ERROR, id="PUSH_PROMISE"),
        pytest.param(frame(Type.HEADERS, 4, 3, b"\xff\xff\xff"), Code.COMPRESSION_ERROR, id="no HPACK"),
        pytest.param(frame(Type.HEADERS, 0, 3, b"") + PING, Code.PROTOCOL_ERROR, id="PING in a header block"),
        pytest.param(frame(Type.DATA, PADDED, 1, b"\x05"), Code.STREAM_CLOSED, id="padding after the end"),
    ],
)
def test_what_ends_the_connection(client: Client, bad: bytes, code: Code) -> None:
    client.say(request(1))
    assert client.say(bad) == []
    assert ended(client.hear()) == code
    assert client.connection.finished
    assert client.connection.held == 0
    assert client.say(request(11)) == []
    client.connection.answer(1, b"nobody reads it")
    assert client.hear() == []


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(window(3, 2**31 - 1), Code.FLOW_CONTROL_ERROR, id="window too large"),
        pytest.param(headers(3, ((b"x", b"y"),)), Code.PROTOCOL_ERROR, id="trailers that are not the end"),
        pytest.param(headers(5, ((b"a", b"b"),)), Code.PROTOCOL_ERROR, id="no pseudo headers"),
        pytest.param(headers(5, fields_of(b"/", (b"Upper", b"b"))), Code.PROTOCOL_ERROR, id="upper case"),
        pytest.param(headers(5, fields_of(b"/", (b"a", b"\0"))), Code.PROTOCOL_ERROR, id="a zero"),
        pytest.param(headers(5, fields_of(b"/\0x")), Code.PROTOCOL_ERROR, id="a zero in the path"),
        pytest.param(headers(5, fields_of(b"/", (b"x", b"y" * 5000))), Code.INTERNAL_ERROR, id="long headers"),
        pytest.param(
            headers(5, fields_of(b"/", (b"content-length", b"9"))) + data(5, message(b"")),
            Code.PROTOCOL_ERROR,
            id="another length",
        ),
    ],
)
def test_what_ends_a_stream(client: Client, bad: bytes, code: Code) -> None:
    client.say(request(1) + headers(3) + data(3, message(b"abc")[:6], end=False))
    assert client.say(bad) == []
    assert ended(client.hear(), Type.RST_STREAM) == code
    client.connection.answer(1, b"fine")
    assert body(client.hear(), 1) == message(b"fine")
    assert len(client.say(request(7))) == 1
    client.say(reset(3))
    assert client.connection.held == 0
