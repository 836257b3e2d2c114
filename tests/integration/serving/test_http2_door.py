"""What clients that mean ill, or are slow, cost the compiled gRPC door and the others who use it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from integration.engine.tiny_bundle import some_input
from integration.serving.doors_rig import RELEASE, Doors, open_doors
from skerry_agent.serving import http2
from skerry_agent.serving.grpc_methods import GrpcMethods
from skerry_contract.oip import open_inference_pb2 as oip
from unit.serving import http2_frames as h2

pytestmark = pytest.mark.skipif(not http2.COMPILED, reason="nghttp2 was not there at installation")
Wait = Callable[..., None]
PATH = b"/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with open_doors(tmp_path_factory.mktemp("device")) as opened:
        yield opened


@contextlib.contextmanager
def opened(doors: Doors, **options: Any) -> Iterator[Any]:
    """A door with bounds of its own, on the same core."""
    from skerry_agent.serving.http2_door import Http2Door

    door = Http2Door(GrpcMethods(doors.core, version="1"), host="127.0.0.1", port=0, **options)
    door.start()
    try:
        yield door
        works(door.port)
        assert door.alive
    finally:
        door.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", door.port), 5)


def works(port: int) -> None:
    """Somebody else's request is answered."""
    message = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[some_input().tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=[1, 2, 3])
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = channel.unary_unary(PATH.decode())
        answer = oip.ModelInferResponse.FromString(stub(message.SerializeToString(), timeout=20))
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(scores, RELEASE.compute(some_input())[0].ravel(), atol=1e-5)


def connect(port: int, *parts: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), 20)
    made.sendall(b"".join(parts))
    return made


def hung_up(connection: socket.socket) -> bytes:
    """All that the server says until it hangs up; fails after the socket's 20 s."""
    heard = b""
    try:
        while part := connection.recv(1 << 16):
            heard += part
    except ConnectionResetError:
        pass
    return heard


HELLO = h2.PREFACE + h2.settings()
BEGIN = h2.headers(1, h2.fields_of(PATH))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP/1.1"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), id="TLS"),
        pytest.param(bytes(100), id="zeros"),
        pytest.param(HELLO + h2.frame(h2.Type.HEADERS, 4, 0, b"\x82"), id="headers on stream 0"),
        pytest.param(HELLO + h2.frame(h2.Type.HEADERS, 4, 1, b"\xff" * 50), id="HPACK nonsense"),
        pytest.param(HELLO + h2.frame(h2.Type.DATA, 0, 1, b"x"), id="data of nothing"),
        pytest.param(HELLO + h2.frame(h2.Type.PING, 0, 0, b"short"), id="short ping"),
        pytest.param(HELLO + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", id="a frame of 16 MB"),
        pytest.param(HELLO + BEGIN + h2.window(0, 2**31 - 1) + h2.window(0, 2**31 - 1), id="window overflow"),
    ],
)
def test_what_is_no_http2_is_hung_up_on(doors: Doors, said: bytes) -> None:
    with opened(doors) as door, contextlib.closing(connect(door.port, said)) as connection:
        hung_up(connection)


def test_a_flood_of_pings_that_nobody_reads_the_answers_of(doors: Doors) -> None:
    with opened(doors) as door, contextlib.closing(connect(door.port, HELLO)) as connection:
        with contextlib.suppress(OSError):
            for _ in range(2000):
                connection.sendall(h2.PING * 1000)
        hung_up(connection)


def test_rapid_reset_costs_nobody_else_anything(doors: Doors) -> None:
    with opened(doors) as door, contextlib.closing(connect(door.port, HELLO)) as connection:
        with contextlib.suppress(OSError):
            for start in range(1, 40_001, 2000):
                parts = [
                    h2.headers(stream, h2.fields_of(PATH)) + h2.reset(stream)
                    for stream in range(start, start + 2000, 2)
                ]
                connection.sendall(b"".join(parts))
        works(door.port)


def test_requests_that_do_not_come_whole_are_given_up(doors: Doors) -> None:
    with opened(doors, request_seconds=0.2) as door:
        trickles = [connect(door.port, HELLO, BEGIN, h2.data(1, h2.message(b"x" * 50)[:20], end=False)) for _ in "123"]
        for trickle in trickles:
            hung_up(trickle)
            trickle.close()


def test_an_answer_that_the_client_gives_no_room_is_given_up(doors: Doors) -> None:
    """Flow control holds the answer back; the place is not held with it."""
    with opened(doors, request_seconds=0.2) as door:
        stalled = connect(door.port, h2.PREFACE, h2.settings(INITIAL_WINDOW_SIZE=0))
        live = oip.ServerLiveRequest().SerializeToString()
        stalled.sendall(h2.headers(1, h2.fields_of(PATH.replace(b"ModelInfer", b"ServerLive"))))
        stalled.sendall(h2.data(1, h2.message(live)))
        hung_up(stalled)
        stalled.close()


def test_idle_clients_stay(doors: Doors, wait_until: Wait) -> None:
    with opened(doors, request_seconds=0.2) as door:
        idle = connect(door.port, HELLO)
        trickle = connect(door.port, HELLO, BEGIN)
        hung_up(trickle)
        trickle.close()
        wait_until(lambda: door.connections == 1, what="the trickling client is put out")
        idle.sendall(h2.PING)
        idle.close()


def test_when_all_places_are_taken_whoever_owes_longest_makes_room(doors: Doors, wait_until: Wait) -> None:
    with opened(doors, connections=4) as door:
        trickle = connect(door.port, HELLO, BEGIN)
        wait_until(lambda: door.connections == 1, what="the first")
        idle = [connect(door.port, HELLO) for _ in range(3)]
        wait_until(lambda: door.connections == 4, what="all places taken")
        works(door.port)
        hung_up(trickle)
        trickle.close()
        works(door.port)
        for one in idle:
            one.close()


def test_messages_that_have_not_come_whole_are_bounded_for_all_together(doors: Doors) -> None:
    with opened(doors, held_bytes=1 << 20) as door:
        small = connect(door.port, HELLO, BEGIN, h2.data(1, h2.message(bytes(5000))[:1000], end=False))
        large = connect(door.port, HELLO, BEGIN)
        with contextlib.suppress(OSError):
            large.sendall(h2.data(1, h2.message(bytes(8 << 20))[:500_000], end=False))
            large.sendall(h2.data(1, bytes(600_000), end=False))
        hung_up(large)
        large.close()
        assert door.connections >= 1  # the small one is still there
        small.close()


def test_a_client_that_does_not_read_is_given_up(doors: Doors) -> None:
    """Its answers fill every buffer; nobody waits for it meanwhile."""
    with opened(doors, request_seconds=0.5) as door:
        message = oip.ModelInferRequest(model_name="nothing" * 10_000).SerializeToString()
        greedy = socket.socket()
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", door.port))
        greedy.settimeout(20)
        greedy.sendall(h2.PREFACE + h2.settings(INITIAL_WINDOW_SIZE=2**31 - 1) + h2.window(0, 2**31 - 1 - 65535))

        def ask_on_and_on() -> None:
            for stream in range(1, 2_000_001, 2):
                greedy.sendall(h2.headers(stream, h2.fields_of(PATH)) + h2.data(stream, h2.message(message)))

        with pytest.raises(OSError, match=r"reset|pipe"):
            ask_on_and_on()
        greedy.close()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (((b":method", b"GET"), (b":scheme", b"http"), (b":path", PATH), (b":authority", b"x")), b"415"),
        (
            (
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH), (b":authority", b"x"),
                (b"content-type", b"application/json"),
            ),
            b"415",
        ),
    ],
)  # fmt: skip
def test_what_is_no_grpc_gets_an_http_status(doors: Doors, fields: h2.Fields, status: bytes) -> None:
    with opened(doors) as door, contextlib.closing(connect(door.port, HELLO)) as connection:
        connection.sendall(h2.headers(1, fields, h2.END_HEADERS | h2.END_STREAM))
        connection.settimeout(20)
        heard, inflate = b"", h2.Inflater()
        while not (found := [one for one in _frames(heard) if one[0] == h2.Type.HEADERS]):
            heard += connection.recv(1 << 16)
        assert dict(inflate(found[0][1]))[b":status"] == status
        inflate.close()


def _frames(heard: bytes) -> list[tuple[int, bytes]]:
    """Type and payload of the whole frames."""
    found = []
    while len(heard) >= 9 and len(heard) >= 9 + int.from_bytes(heard[:3], "big"):
        size = int.from_bytes(heard[:3], "big")
        found.append((heard[3], heard[9 : 9 + size]))
        heard = heard[9 + size :]
    return found


def test_stopping_does_not_wait_for_clients_that_are_idle(doors: Doors) -> None:
    with opened(doors) as door:
        idle = [connect(door.port, HELLO) for _ in range(5)]
        works(door.port)
    for one in idle:
        hung_up(one)
        one.close()
