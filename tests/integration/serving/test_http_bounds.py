"""What a client may make the HTTP door wait for, and what HTTP/1.1 allows a client to do."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from integration.engine.tiny_bundle import some_input
from integration.serving.doors_rig import RELEASE, Doors, open_doors
from skerry_agent.serving.http_app import create_app
from skerry_agent.serving.http_door import HttpDoor
from skerry_agent.serving.http_protocol import BoundedProtocol


class Strict(BoundedProtocol):
    request_seconds = 0.2
    head_bytes = 4096
    most = 6
    sweep_seconds = 0.05


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with open_doors(tmp_path_factory.mktemp("device")) as opened:
        yield opened


@pytest.fixture(scope="module")
def strict(doors: Doors) -> Iterator[HttpDoor]:
    app = create_app(doors.core, version="1", metrics=lambda _: (b"", "text/plain"), status=dict)
    door = HttpDoor(app, host="127.0.0.1", port=0, protocol=Strict)
    door.start()
    yield door
    door.stop()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(seed: int = 3, headers: str = "") -> bytes:
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": some_input(seed=seed).ravel().tolist()}
    body = json.dumps({"id": str(seed), "inputs": [entry]}).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_answers(connection: socket.socket, number: int) -> list[tuple[bytes, bytes]]:
    """Status line and body of so many answers."""
    stream = connection.makefile("rb")
    answers = []
    for _ in range(number):
        status = stream.readline().strip()
        size = 0
        while (line := stream.readline().strip()) != b"":
            name, value = line.split(b": ", 1)
            size = int(value) if name.lower() == b"content-length" else size
        answers.append((status, stream.read(size)))
    return answers


def assert_answers(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(request())
        ((status, body),) = read_answers(connection, 1)
    assert status == b"HTTP/1.1 200 OK"
    scores = np.array(json.loads(body)["outputs"][0]["data"], dtype=np.float32)
    np.testing.assert_allclose(scores, RELEASE.compute(some_input())[0].ravel(), atol=1e-5)


@pytest.mark.parametrize("sent", [b"", b"POST /v2/models/tiny/in", request()[:-10]])
def test_a_request_that_does_not_arrive(strict: HttpDoor, sent: bytes) -> None:
    with connect(strict.port) as connection:
        connection.sendall(sent)
        ((status, body),) = read_answers(connection, 1)
        assert status == b"HTTP/1.1 408 Request Timeout"
        assert b"within 0.2 s" in body
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(10) == b""
    assert_answers(strict.port)


def test_a_head_that_does_not_end(strict: HttpDoor) -> None:
    with connect(strict.port) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 2000)
        ((status, _),) = read_answers(connection, 1)
        assert status == b"HTTP/1.1 431 Request Header Fields Too Large"
    assert_answers(strict.port)


def test_who_trickles_makes_room_for_others(doors: Doors) -> None:
    class Crowded(Strict):
        request_seconds = 60.0

    app = create_app(doors.core, version="1", metrics=lambda _: (b"", "text/plain"), status=dict)
    door = HttpDoor(app, host="127.0.0.1", port=0, protocol=Crowded)
    door.start()
    with contextlib.ExitStack() as stack:
        stack.callback(door.stop)
        for _ in range(3 * Crowded.most):
            connection = stack.enter_context(connect(door.port))
            connection.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Le")
        for _ in range(3):
            assert_answers(door.port)


def test_keep_alive(doors: Doors) -> None:
    with connect(doors.http.port) as connection:
        for seed in range(5):
            connection.sendall(request(seed))
            ((status, body),) = read_answers(connection, 1)
            assert (status, json.loads(body)["id"]) == (b"HTTP/1.1 200 OK", str(seed))


def test_pipelining(doors: Doors) -> None:
    with connect(doors.http.port) as connection:
        connection.sendall(b"".join(request(seed) for seed in range(8)))
        answers = read_answers(connection, 8)
    assert [json.loads(body)["id"] for _, body in answers] == [str(seed) for seed in range(8)]


def test_chunks(doors: Doors) -> None:
    head, body = request().split(b"\r\n\r\n", 1)
    head = head.split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    parts = [body[start : start + 7] for start in range(0, len(body), 7)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    with connect(doors.http.port) as connection:
        connection.sendall(head + chunks + b"0\r\n\r\n")
        ((status, body),) = read_answers(connection, 1)
    assert status == b"HTTP/1.1 200 OK"
    np.testing.assert_allclose(json.loads(body)["outputs"][0]["data"], RELEASE.compute(some_input())[0].ravel(), 1e-4)


@pytest.mark.parametrize(
    ("header", "status", "says"),
    [
        ("skerry-deadline-us: 10000000\r\n", 200, "scores"),
        ("skerry-deadline-us: 0.001\r\n", 503, "deadline"),
        ("skerry-deadline-us: -1\r\n", 400, "skerry-deadline-us"),
        ("skerry-deadline-us: nan\r\n", 400, "skerry-deadline-us"),
    ],
)
def test_the_deadline_header(doors: Doors, header: str, status: int, says: str) -> None:
    with connect(doors.http.port) as connection:
        connection.sendall(request(headers=header))
        ((line, body),) = read_answers(connection, 1)
    assert int(line.split()[1]) == status
    assert says in body.decode()
    assert_answers(doors.http.port)
