"""One connection of the gRPC door under bytes in any pieces, any bytes, floods, and a hundred thousand requests."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.serving import http2
from skerry_agent.serving.http2 import Problem, Request
from unit.serving import http2_frames as h2
from unit.serving.http2_frames import END_HEADERS, END_STREAM, PADDED, PREFACE, Client, Code, Type

pytestmark = pytest.mark.skipif(not http2.COMPILED, reason="nghttp2 or a compiler was not there at installation")

SMALL = h2.block(h2.fields_of())


@pytest.fixture
def client() -> Iterator[Client]:
    with contextlib.closing(Client()) as made:
        yield made


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def conversation(*, seed: int = 0, continued: bool = True) -> bytes:
    """Some of everything that a client may say.

    ``continued``: with CONTINUATION, of which nghttp2 1.52 counts each piece that the frame's header comes in, and ends
    the connection at nine.
    """
    draw = random.Random(seed)
    padded = h2.block(h2.fields_of(b"/padded/and/cut"))
    pieces = [
        [h2.request(1, b"one")],
        [h2.headers(3), *(h2.data(3, bytes([b]), end=False) for b in h2.message(b"three")), h2.data(3, b"")],
        [
            h2.frame(Type.HEADERS, PADDED, 5, b"\x02" + padded[:9] + b"\0\0")
            + h2.frame(Type.CONTINUATION, 0, 5, padded[9:30])
            + h2.frame(Type.CONTINUATION, END_HEADERS, 5, padded[30:])
            if continued
            else h2.frame(Type.HEADERS, PADDED | END_HEADERS, 5, b"\x02" + padded + b"\0\0"),
            h2.frame(Type.DATA, PADDED, 5, b"\x04" + h2.message(draw.randbytes(300)) + bytes(4)),
            h2.headers(5, ((b"x-t", b"1"),), END_HEADERS | END_STREAM),
        ],
        [h2.headers(7, h2.fields_of(method=b"GET")), h2.data(7, b"no")],
        [h2.headers(9), h2.data(9, b"\0\xff\xff\xff\xff", end=False), h2.data(9, b"too large")],
        [h2.headers(11) + h2.data(11, h2.message(b"given up")[:8], end=False), h2.reset(11)],
        [h2.headers(13, h2.fields_of(b"/i", (b"grpc-timeout", b"5S"))), h2.data(13, h2.message(b"x") + b"y")],
    ]
    begun = b"".join(one.pop(0) for one in pieces)  # streams are opened in order, everything else mixes
    rest = [h2.PING, h2.window(0, 5), h2.settings(INITIAL_WINDOW_SIZE=70_000), h2.frame(0x55, 1, 2, b"?")]
    while any(pieces):
        rest.append(draw.choice([one for one in pieces if one]).pop(0))
    return PREFACE + h2.settings() + h2.SETTINGS_ACK + begun + b"".join(rest)


def told(requests: list[Request]) -> dict[int, tuple[object, ...]]:
    """Requests without the time, by their stream."""
    assert len({one.stream for one in requests}) == len(requests)
    return {one.stream: one[1:-1] for one in requests}


class TestPieces:
    def test_what_is_expected(self) -> None:
        with contextlib.closing(Client(hello=b"")) as client:
            got = told(client.say(conversation()))
            assert {stream: fields[5] for stream, fields in got.items()} == {
                1: Problem.NONE,
                3: Problem.NONE,
                5: Problem.NONE,
                7: Problem.NOT_GRPC,
                9: Problem.TOO_LARGE,
                13: Problem.BROKEN,
            }
            assert client.connection.held == 0

    @given(seed=st.integers(0, 3), cuts=st.lists(st.integers(0, 2500), max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_any_pieces_give_the_same_requests(self, seed: int, cuts: list[int]) -> None:
        whole = conversation(seed=seed, continued=False)
        edges = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
        self.assert_same(whole, [whole[a:b] for a, b in itertools.pairwise(edges)])

    @pytest.mark.parametrize("seed", range(4))
    def test_every_byte_alone(self, seed: int) -> None:
        whole = conversation(seed=seed, continued=False)
        self.assert_same(whole, [whole[at : at + 1] for at in range(len(whole))])

    def assert_same(self, whole: bytes, pieces: list[bytes]) -> None:
        with contextlib.closing(Client(hello=b"")) as one, contextlib.closing(Client(hello=b"")) as other:
            assert told(one.say(whole)) == told(other.say(*pieces))
            assert one.hear() == other.hear()
            assert other.connection.held == 0


def changed(draw: random.Random, whole: bytes) -> bytes:
    """The conversation with something wrong in it."""
    bytes_ = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at, size = draw.randrange(len(PREFACE), len(bytes_)), draw.randint(1, 20)
        match draw.randrange(5):
            case 0:
                bytes_[at] ^= 1 << draw.randrange(8)
            case 1:
                bytes_[at : at + size] = draw.randbytes(size)
            case 2:
                del bytes_[at : at + size]
            case 3:
                bytes_[at:at] = bytes_[at : at + size]
            case 4:
                frames = [h2.reset(draw.randrange(1, 15, 2)), h2.window(draw.randrange(15), draw.randrange(2**31))]
                bytes_[at:at] = draw.choice(frames)
    return bytes(bytes_)


def answer(client: Client, draw: random.Random, stream: int) -> None:
    """In one of the ways there are."""
    match draw.randrange(3):
        case 0:
            client.connection.answer(stream, bytes(draw.randrange(100_000)))
        case 1:
            client.connection.fail(stream, 3, "no")
        case 2:
            client.connection.refuse(stream, "415")


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_are_survived(seed: int) -> None:
    """Whatever comes, and however it is answered: no crash, and the numbers add up; another client is not concerned."""
    draw = random.Random(seed)
    for _ in range(60):
        with contextlib.closing(Client(hello=b"", message_limit=2000)) as client:
            sent = changed(draw, conversation(seed=draw.randrange(4)))
            open_: list[Request] = []
            with contextlib.suppress(ValueError):
                for at in range(0, len(sent), 400):
                    open_ += client.say(sent[at : at + 400])
                    assert 0 <= client.connection.held <= len(sent)
                    while open_ and draw.random() < 0.7:
                        answer(client, draw, open_.pop(draw.randrange(len(open_))).stream)
                    client.hear()
            client.hear()
            assert client.connection.held >= 0
            assert isinstance(client.connection.idle, bool)
            assert isinstance(client.connection.finished, bool)


class TestFloods:
    """Each takes no more memory than its bytes, and none lasts."""

    @pytest.mark.parametrize(
        "flood",
        [
            pytest.param(h2.PING, id="PING"),
            pytest.param(h2.settings(), id="SETTINGS"),
            pytest.param(h2.settings(HEADER_TABLE_SIZE=0, MAX_FRAME_SIZE=16_384), id="SETTINGS with values"),
        ],
    )
    def test_answers_that_nobody_reads(self, client: Client, flood: bytes) -> None:
        client.say(flood * 900)
        with pytest.raises(ValueError, match="Flood"):
            client.say(flood * 200)
        with pytest.raises(ValueError, match="Flood"):
            client.say(flood)

    def test_streams_that_are_refused(self) -> None:
        """nghttp2 knows no limit of its own for the RST_STREAM that nobody reads."""
        with contextlib.closing(Client(hello=PREFACE + h2.settings(), streams=4)) as client:
            refused = b"".join(h2.frame(Type.HEADERS, END_HEADERS, 2 * i + 1, b"\x83") for i in range(100_000))
            before = resident()
            with pytest.raises(ValueError, match="Flood"):
                client.say(refused)
            assert resident() - before < 16 << 20

    def test_refused_streams_are_said_so(self) -> None:
        with contextlib.closing(Client(hello=PREFACE + h2.settings(), streams=2)) as client:
            got = client.say(h2.request(1) + h2.request(3) + h2.headers(5))
            assert [one.stream for one in got] == [1, 3]
            (refused,) = h2.of(client.hear(), Type.RST_STREAM)
            assert (refused.stream, refused.code) == (5, Code.REFUSED_STREAM)

    def test_a_stream_too_many_after_it_has_agreed(self) -> None:
        with contextlib.closing(Client(streams=2)) as client:
            client.say(h2.headers(1) + h2.headers(3) + h2.headers(5))
            (end,) = h2.of(client.hear(), Type.GOAWAY)
            assert end.code == Code.PROTOCOL_ERROR
            assert client.connection.finished

    def test_rapid_reset(self, client: Client) -> None:
        given = 0
        for start in range(1, 6001, 100):
            given += len(client.say(*(h2.request(i) + h2.reset(i) for i in range(start, start + 100, 2))))
            client.connection.flush(client.server.fileno())
        (end,) = h2.of(client.read(), Type.GOAWAY)
        assert end.code == Code.INTERNAL_ERROR
        assert client.connection.finished
        assert given == 0

    def test_continuations(self, client: Client) -> None:
        client.say(h2.frame(Type.HEADERS, 0, 1, b""))
        with pytest.raises(ValueError, match="CONTINUATION"):
            client.say(h2.frame(Type.CONTINUATION, 0, 1, b"") * 20)

    def test_a_bomb_of_one_entry_of_the_table(self, client: Client) -> None:
        """A field of 4,000 bytes that is said once, and then again by one byte each."""
        bomb = h2.block(h2.fields_of()) + h2.literal(b"x", b"y" * 3900, indexed=True) + b"\xbe" * 10_000
        assert client.say(h2.frame(Type.HEADERS, END_HEADERS | END_STREAM, 1, bomb)) == []
        frames = client.hear()
        assert [(one.stream, one.code) for one in h2.of(frames, Type.RST_STREAM)] == [(1, Code.INTERNAL_ERROR)]
        assert client.connection.idle
        assert len(client.say(h2.request(3))) == 1

    def test_headers_that_never_end_their_limit(self, client: Client) -> None:
        """The limit counts trailers too, and empty fields by 32 bytes."""
        many = h2.block((b"a", b"") for _ in range(100))
        client.say(h2.headers(1))
        client.say(h2.frame(Type.HEADERS, END_HEADERS | END_STREAM, 1, many + many))
        assert [one.code for one in h2.of(client.hear(), Type.RST_STREAM)] == [Code.INTERNAL_ERROR]
        client.say(h2.frame(Type.HEADERS, END_HEADERS, 3, SMALL + many[:1]))  # and what is cut ends the connection
        assert [one.code for one in h2.of(client.hear(), Type.GOAWAY)] == [Code.COMPRESSION_ERROR]

    def test_a_frame_that_is_too_long(self, client: Client) -> None:
        client.say((1 << 20 | 1).to_bytes(3, "big") + struct.pack(">BBI", Type.GOAWAY, 0, 0))
        assert [one.code for one in h2.of(client.hear(), Type.GOAWAY)] == [Code.FRAME_SIZE_ERROR]

    @pytest.mark.parametrize(
        "flood",
        [
            pytest.param([h2.data(1, b"", end=False)], id="empty DATA"),
            pytest.param([h2.frame(Type.DATA, PADDED, 1, b"\x00")], id="DATA of padding"),
            pytest.param([h2.window(1, 1), h2.window(0, 1)], id="WINDOW_UPDATE"),
            pytest.param(
                [h2.frame(Type.PRIORITY, 0, 2 * i + 3, bytes(4) + b"\x10") for i in range(2000)], id="PRIORITY"
            ),
            pytest.param([h2.settings(INITIAL_WINDOW_SIZE=i) + h2.PING for i in range(300)], id="SETTINGS"),
            pytest.param([h2.frame(0xAB, 0xFF, 9, bytes(100))], id="unknown frames"),
            pytest.param([h2.window(77, 5)[:3] + b"\x0c" + h2.window(77, 5)[4:]], id="unknown updates"),
        ],
    )
    def test_what_is_allowed_takes_no_memory(self, client: Client, flood: list[bytes]) -> None:
        client.say(h2.headers(1))
        once = b"".join(flood)
        part = once * max(1, 400 // len(flood))
        for round_ in range(40):
            if round_ == 5:
                before = resident()
            assert client.say(part) == []
            client.hear()
        assert resident() - before < 2 << 20
        assert client.connection.held == 0
        assert [one.stream for one in client.say(h2.data(1, h2.message(b"still here")))] == [1]

    def test_a_body_that_nobody_wants(self, client: Client) -> None:
        """What follows the problem is not kept, however much it is."""
        assert len(client.say(h2.headers(1) + h2.data(1, b"\xffbadly", end=False))) == 1
        before = resident()
        for _ in range(300):
            assert client.say(h2.data(1, bytes(16_000), end=False) * 2) == []
            client.hear()
        assert resident() - before < 2 << 20
        assert client.connection.held == 0


def test_what_has_not_come_whole_goes_with_the_connection() -> None:
    payload = bytes(300_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        client = Client()
        for stream in (1, 3, 5):
            client.say(h2.headers(stream) + h2.data(stream, h2.message(payload)[:10_000], end=False))
        client.say(h2.request(7))
        client.connection.answer(7, bytes(5 << 20))
        client.connection.flush(client.server.fileno())
        assert client.connection.held == 3 * 9_995
        assert tracemalloc.get_traced_memory()[0] - before > 5 << 20
        client.close()
        del client
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


def serve(client: Client, first: int, count: int) -> int:
    """So many requests from a stream on, eight at a time, answered in every way; how many came."""
    long = bytes(2000)
    served = 0
    for start in range(first, first + 2 * count, 16):
        streams = range(start, start + 16, 2)
        asked = (h2.frame(Type.HEADERS, END_HEADERS, i, SMALL) + h2.data(i, h2.message(b"ask")) for i in streams)
        for one in client.say(b"".join(asked)):
            match one.stream % 6:
                case 1:
                    client.connection.answer(one.stream, long)
                case 3:
                    client.connection.fail(one.stream, 13, "no")
                case _:
                    client.connection.refuse(one.stream, "415")
            served += 1
        while not client.connection.flush(client.server.fileno()):
            client.socket.recv(1 << 20)
        client.socket.recv(1 << 20)
    return served


def test_a_hundred_thousand_requests_take_no_memory(client: Client) -> None:
    client.say(h2.window(0, (1 << 31) - 65_536))
    serve(client, 1, 20_000)
    before = resident()
    assert serve(client, 40_001, 100_000) == 100_000
    assert resident() - before < 2 << 20
    assert (client.connection.held, client.connection.idle) == (0, True)


@pytest.mark.parametrize("hello", [b"", PREFACE, PREFACE + h2.settings()])
def test_connections_take_no_memory(hello: bytes) -> None:
    """Made, used, and dropped at any moment."""
    assert http2.new_connection is not None
    with contextlib.closing(Client(hello=hello)) as one:
        for round_ in range(2000):
            if round_ == 500:
                before = resident()
            kept = http2.new_connection(streams=4, message_limit=100, header_limit=1000)
            one.socket.send(PREFACE + h2.settings() + h2.headers(1) + h2.data(1, h2.message(b"abc")[:7], end=False))
            assert kept.receive(one.server.fileno()) == []
            assert kept.held == 2
        assert resident() - before < 2 << 20
