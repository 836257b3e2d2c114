"""One connection of the gRPC door: requests, and their answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry_agent.serving import http2
from skerry_agent.serving.http2 import Problem
from unit.serving.http2_frames import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    Client,
    Code,
    Fields,
    Setting,
    Type,
    block,
    body,
    data,
    ended,
    fields_of,
    frame,
    headers,
    message,
    of,
    request,
    settings,
    window,
)

compiled = pytest.mark.skipif(not http2.COMPILED, reason="nghttp2 or a compiler was not there at installation")
ANSWER_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))


def test_it_is_compiled_where_nghttp2_and_a_compiler_are() -> None:
    """Fails when the extension does not build any more, which the optional extension would hide."""
    python = Path(__import__("sysconfig").get_path("include")) / "Python.h"
    nghttp2 = Path("/usr/include/nghttp2/nghttp2.h")
    assert http2.COMPILED or not python.exists() or not nghttp2.exists() or shutil.which("gcc") is None


@pytest.fixture
def client() -> Iterator[Client]:
    with contextlib.closing(Client()) as made:
        yield made


@compiled
class TestRequests:
    def test_a_request(self, client: Client) -> None:
        before = time.monotonic_ns()
        more = ((b"grpc-timeout", b"250m"), (b"grpc-encoding", b"gzip"), (b"user-agent", b"x"))
        (got,) = client.say(headers(1, fields_of(b"/a.B/C", *more)) + data(1, message(b"hello", 1)))
        assert got[:-1] == (1, b"/a.B/C", b"250m", b"gzip", b"hello", True, Problem.NONE)
        assert before <= got.begun_ns <= time.monotonic_ns()
        assert (client.connection.held, client.connection.open_since_ns) == (0, got.begun_ns)
        assert not client.connection.idle

    @pytest.mark.parametrize("size", [0, 1, 5, 16_379, 16_384, 300_000, (1 << 20) - 1, 1 << 20])
    def test_messages_of_every_size(self, client: Client, size: int) -> None:
        payload = os.urandom(size)
        whole = message(payload)
        parts = [whole[at : at + 16_000] for at in range(0, len(whole), 16_000)]
        client.say(headers(1))
        held = 0
        for part in parts[:-1]:
            assert client.say(data(1, part, end=False)) == []
            held += len(part)
            assert client.connection.held == held - 5
            client.hear()
        (got,) = client.say(data(1, parts[-1]))
        assert (got.message, got.problem) == (payload, Problem.NONE)
        count = sys.getrefcount(got.message)
        assert count == 2 or size < 2  # the request's and the argument's; short ones are everybody's
        assert client.connection.held == 0

    def test_requests_that_come_in_pieces_of_each_other(self, client: Client) -> None:
        first, second = message(b"first"), message(b"second")
        client.say(headers(1) + headers(3))
        began = client.connection.open_since_ns
        client.say(data(1, first[:3], end=False) + data(3, second[:7], end=False) + data(1, first[3:6], end=False))
        assert client.connection.held == 1 + 2
        assert [one.stream for one in client.say(data(3, second[7:]))] == [3]
        client.connection.answer(3, b"")
        client.hear()
        assert client.connection.open_since_ns == began
        assert [one.message for one in client.say(data(1, first[6:]))] == [b"first"]
        client.connection.answer(1, b"")
        assert client.connection.open_since_ns == began
        client.hear()
        assert client.connection.open_since_ns is None

    def test_padding_priority_continuations_trailers_and_unknown_frames(self, client: Client) -> None:
        whole = block(fields_of())
        padded = frame(Type.HEADERS, 0x20 | PADDED, 1, b"\x03" + bytes(4) + b"\x10" + whole[:20] + bytes(3))
        rest = frame(Type.CONTINUATION, 0, 1, whole[20:21]) + frame(Type.CONTINUATION, END_HEADERS, 1, whole[21:])
        payload = frame(Type.DATA, PADDED, 1, b"\xff" + message(b"abc") + bytes(255))
        unknown = frame(0x77, 0xFF, 1, b"what") + frame(Type.DATA, 0, 1) + frame(Type.DATA, PADDED, 1, b"\x00")
        assert client.say(padded + rest + unknown + payload) == []
        (got,) = client.say(headers(1, ((b"x-checksum", b"1"),), END_HEADERS | END_STREAM))
        assert (got.path, got.message, got.problem) == (b"/s/m", b"abc", Problem.NONE)

    @pytest.mark.parametrize(
        ("fields", "payload", "problem"),
        [
            pytest.param(fields_of(), b"", Problem.BROKEN, id="nothing"),
            pytest.param(fields_of(), message(b"ab")[:4], Problem.BROKEN, id="part of a prefix"),
            pytest.param(fields_of(), message(b"ab")[:-1], Problem.BROKEN, id="part of a message"),
            pytest.param(fields_of(), message(b"ab") + b"x", Problem.BROKEN, id="a byte more"),
            pytest.param(fields_of(), message(b"ab") * 2, Problem.BROKEN, id="two messages"),
            pytest.param(fields_of(), message(b"ab", 2), Problem.BROKEN, id="a flag that is not known"),
            pytest.param(fields_of(), message(bytes((1 << 20) + 1)), Problem.TOO_LARGE, id="too large"),
            pytest.param(fields_of(), b"\0\xff\xff\xff\xff", Problem.TOO_LARGE, id="the largest"),
            pytest.param(fields_of(b"/" + b"p" * 255), message(b""), Problem.BROKEN, id="long path"),
            pytest.param(fields_of(b"/", (b"grpc-timeout", b"9" * 16)), message(b""), Problem.BROKEN, id="long time"),
            pytest.param(fields_of(b"/", (b"grpc-encoding", b"e" * 32)), b"", Problem.BROKEN, id="long encoding"),
            pytest.param(fields_of(method=b"GET"), b"", Problem.NOT_GRPC, id="GET"),
            pytest.param(fields_of()[:-1], message(b""), Problem.NOT_GRPC, id="no content type"),
            pytest.param(
                (*fields_of()[:-1], (b"content-type", b"application/json")), b'{"a": 1}', Problem.NOT_GRPC, id="json"
            ),
            pytest.param(
                (*fields_of()[:-1], (b"content-type", b"application/grpcx")), b"", Problem.NOT_GRPC, id="grpcx"
            ),
        ],
    )
    def test_problems_are_told_once_and_answered(
        self, client: Client, fields: Fields, payload: bytes, problem: Problem
    ) -> None:
        pieces = [payload[at : at + 16_000] for at in range(0, len(payload), 16_000)] or [b""]
        got = client.say(headers(1, fields), *(data(1, piece, end=False) for piece in pieces), data(1, b""))
        assert [(one.message, one.problem) for one in got] == [(b"", problem)]
        assert client.connection.held == 0
        client.connection.fail(1, 13, "no")
        (answer,) = of(client.hear(), Type.HEADERS)
        assert answer.fields == (*ANSWER_HEAD, (b"grpc-status", b"13"), (b"grpc-message", b"no"))
        assert client.connection.idle
        assert client.connection.open_since_ns is None
        assert len(client.say(request(3))) == 1

    @pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=x"])
    def test_content_types(self, client: Client, kind: bytes) -> None:
        (got,) = client.say(headers(1, (*fields_of()[:-1], (b"content-type", kind))) + data(1, message(b"")))
        assert got.problem == Problem.NONE

    def test_longest_fields(self, client: Client) -> None:
        more = ((b"grpc-timeout", b"9" * 15), (b"grpc-encoding", b"e" * 31))
        (got,) = client.say(headers(1, fields_of(b"/" + b"p" * 254, *more)) + data(1, message(b"")))
        assert (len(got.path), len(got.timeout), len(got.encoding), got.problem) == (255, 15, 31, Problem.NONE)

    def test_headers_alone(self, client: Client) -> None:
        (got,) = client.say(headers(1, flags=END_HEADERS | END_STREAM))
        assert got.problem == Problem.BROKEN

    def test_what_is_no_grpc_need_not_be_sent_to_its_end(self, client: Client) -> None:
        (got,) = client.say(headers(1, fields_of(method=b"PUT")))
        assert got.problem == Problem.NOT_GRPC
        client.connection.refuse(1, "415")
        frames = client.hear()
        assert [one.fields for one in of(frames, Type.HEADERS)] == [((b":status", b"415"),)]
        assert ended(frames, Type.RST_STREAM) == Code.NO_ERROR
        assert client.connection.idle
        assert client.say(data(1, b"too late", end=False)) == []

    def test_the_limit_may_be_changed(self, client: Client) -> None:
        client.connection.message_limit = 2
        (got,) = client.say(request(1, b"abc"))
        assert got.problem == Problem.TOO_LARGE


@compiled
class TestAnswers:
    @pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000, 5 << 20])
    def test_an_answer(self, client: Client, size: int) -> None:
        client.say(
            window(0, 1 << 30) + settings(INITIAL_WINDOW_SIZE=1 << 30, MAX_FRAME_SIZE=(1 << 24) - 1) + request(1)
        )
        client.hear()
        payload = os.urandom(size)
        before = sys.getrefcount(payload)
        client.connection.answer(1, payload)
        assert sys.getrefcount(payload) == before + 1
        frames = client.hear()
        head, trailer = of(frames, Type.HEADERS)
        assert head.fields == (*ANSWER_HEAD, (b"grpc-accept-encoding", b"identity,deflate,gzip"))
        assert (trailer.fields, trailer.flags) == (((b"grpc-status", b"0"),), END_HEADERS | END_STREAM)
        assert frames[-1] == trailer
        assert body(frames, 1) == message(payload)
        assert sys.getrefcount(payload) == before
        assert client.connection.idle

    @pytest.mark.parametrize("step", [1, 3, 5, 6, 100])
    def test_a_window_of_nothing_and_steps(self, client: Client, step: int) -> None:
        client.say(settings(INITIAL_WINDOW_SIZE=0) + request(1))
        client.connection.answer(1, b"0123456789")
        frames = client.hear()
        assert body(frames, 1) == b""
        assert not client.connection.idle
        got = b""
        while len(got) < 15:
            client.say(window(1, step))
            frames = client.hear()
            part = body(frames, 1)
            assert part == message(b"0123456789")[len(got) : len(got) + step]
            got += part
        assert of(frames, Type.HEADERS)[-1].fields == ((b"grpc-status", b"0"),)
        assert client.connection.idle

    def test_a_window_that_is_taken_back(self, client: Client) -> None:
        client.say(settings(INITIAL_WINDOW_SIZE=50_000) + request(1))
        client.connection.answer(1, bytes(99_995))
        assert len(body(client.hear(), 1)) == 50_000
        client.say(settings(INITIAL_WINDOW_SIZE=10_000) + window(1, 40_000))  # 0 is left
        assert body(client.hear(), 1) == b""
        client.say(window(1, 40_001) + settings(INITIAL_WINDOW_SIZE=20_000))  # of the connection's, 15,535
        assert len(body(client.hear(), 1)) == 15_535
        client.say(window(0, 50_000))
        assert len(body(client.hear(), 1)) == 100_000 - 50_000 - 15_535
        assert client.connection.idle

    def test_many_at_once(self, client: Client) -> None:
        client.say(window(0, 1 << 30), *(request(stream) for stream in range(1, 17, 2)))
        payloads = {stream: os.urandom(60_000 + stream) for stream in range(1, 17, 2)}
        for stream, payload in payloads.items():
            client.connection.answer(stream, payload)
        frames = client.hear()
        assert {stream: body(frames, stream) for stream in payloads} == {k: message(v) for k, v in payloads.items()}
        assert client.connection.idle

    @pytest.mark.parametrize("size", [0, 1, 100, 2**32 - 1])
    def test_a_client_with_another_table(self, client: Client, size: int) -> None:
        client.say(settings(HEADER_TABLE_SIZE=size))
        for stream in (1, 3, 5):
            client.say(request(stream))
            client.connection.fail(stream, stream, "again")
            (answer,) = of(client.hear(), Type.HEADERS)
            assert dict(answer.fields)[b"grpc-status"] == b"%d" % stream

    def test_a_client_that_does_not_read(self, client: Client) -> None:
        payload = os.urandom(2 << 20)
        client.say(window(0, 1 << 30) + settings(INITIAL_WINDOW_SIZE=1 << 30) + request(1))
        client.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.connection.answer(1, payload)
        assert client.connection.flush(client.server.fileno()) is False
        assert client.connection.flush(client.server.fileno()) is False
        assert not client.connection.idle
        assert body(client.hear(), 1) == message(payload)
        assert client.connection.idle

    def test_a_text_is_escaped_and_cut_between_characters(self, client: Client) -> None:
        texts = {"": b"", "a%b\n\x7fö": b"a%25b%0A%7F%C3%B6", "x" * 1030: b"x" * 1024, "x" * 1023 + "ö": b"x" * 1023}
        texts |= {"\x00": b"%00", "€" * 400: b"%E2%82%AC" * 341}
        for stream, (text, sent) in zip(range(1, 100, 2), texts.items(), strict=False):
            client.say(request(stream))
            client.connection.fail(stream, -(2**31), text)
            (answer,) = of(client.hear(), Type.HEADERS)
            assert dict(answer.fields)[b"grpc-message"] == sent
            assert dict(answer.fields)[b"grpc-status"] == b"-2147483648"

    def test_each_request_is_answered_once(self, client: Client) -> None:
        client.say(request(1) + headers(3))
        client.connection.answer(1, b"one")
        for stream in (1, 3):
            with pytest.raises(RuntimeError, match="to be answered"):
                client.connection.answer(stream, b"two")
            with pytest.raises(RuntimeError, match="to be answered"):
                client.connection.fail(stream, 2, "")
            with pytest.raises(RuntimeError, match="to be answered"):
                client.connection.refuse(stream, "400")
        frames = client.hear()
        assert body(frames, 1) == message(b"one")
        assert {one.stream for one in of(frames, Type.HEADERS)} == {1}
        assert [one.stream for one in client.say(data(3, message(b"")))] == [3]

    @pytest.mark.parametrize("stream", [-1, 0, 2, 5, 2**31 - 1])
    def test_streams_that_are_not_there(self, client: Client, stream: int) -> None:
        client.say(request(1))
        client.connection.answer(stream, b"")
        client.connection.fail(stream, 2, "")
        client.connection.refuse(stream, "400")
        assert client.hear() == []

    def test_what_cannot_be_said(self, client: Client) -> None:
        client.say(request(1))
        with pytest.raises(UnicodeEncodeError):
            client.connection.fail(1, 2, "\udcff")
        with pytest.raises(TypeError):
            client.connection.answer(1, bytearray(b"x"))  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            client.connection.answer(2**31, b"x")
        client.connection.answer(1, b"x")
        assert body(client.hear(), 1) == message(b"x")


@compiled
def test_arguments() -> None:
    assert http2.new_connection is not None
    good = {"streams": 1, "message_limit": 0, "header_limit": 0}
    http2.new_connection(**good)
    for bad in ({"streams": 0}, {"message_limit": -1}, {"header_limit": -1}, {"header_limit": 2**32}):
        with pytest.raises(ValueError, match="limits"):
            http2.new_connection(**good | bad)
    with pytest.raises(TypeError):
        http2.new_connection(1, 2, 3)  # type: ignore[call-arg]
    kind = type(http2.new_connection(**good))
    with pytest.raises(TypeError):
        kind.__new__(kind)


@compiled
def test_what_the_server_says_first() -> None:
    client = Client(streams=7, header_limit=999, hello=b"")
    first, more = client.hear()
    assert (first.type, more.type, more.stream) == (Type.SETTINGS, Type.WINDOW_UPDATE, 0)
    pairs = [first.payload[at : at + 6] for at in range(0, len(first.payload), 6)]
    said = {Setting(int.from_bytes(one[:2], "big")): int.from_bytes(one[2:], "big") for one in pairs}
    assert said[Setting.MAX_CONCURRENT_STREAMS] == 7
    assert said[Setting.MAX_HEADER_LIST_SIZE] == 999
    client.close()
