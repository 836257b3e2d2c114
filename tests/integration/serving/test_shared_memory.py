"""The shared-memory door with the real client, with clients that lie, and through a change of release."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, some_input
from integration.serving.doors_rig import RELEASE, Doors, open_doors
from skerry_agent.client import (
    BusyError,
    DisconnectedError,
    LateError,
    NoActiveReleaseError,
    RefusedRequestError,
    SharedMemoryClient,
    UnfitInputError,
)
from skerry_agent.serving import shared_memory_layout as layout
from skerry_agent.serving.labels import Label
from skerry_agent.serving.shared_memory_door import SharedMemoryDoor
from skerry_agent.serving.shared_memory_region import ClientRegion


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with open_doors(tmp_path_factory.mktemp("device")) as opened:
        yield opened


@pytest.fixture
def client(doors: Doors) -> Iterator[SharedMemoryClient]:
    with SharedMemoryClient.connect(doors.layout.root, rows=64, slots=4) as connected:
        yield connected


def assert_right(client: SharedMemoryClient, x: Any, release: TinyRelease = RELEASE) -> None:
    answer = client.infer(x)
    scores, features = release.compute(x)
    np.testing.assert_allclose(answer.scores, scores, atol=1e-5)
    np.testing.assert_allclose(answer.features, features, atol=1e-6)
    assert answer.release_id == release.release_id


def test_the_model_is_described(client: SharedMemoryClient) -> None:
    model = client.model
    assert (model.task, model.release_id, model.shape) == ("tiny", "release-one", (2, 3))
    assert (model.classes, model.features, model.rows) == (("low", "middle", "high"), 2, 64)
    assert (model.minimum, model.maximum) == (-100.0, 100.0)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_answers(client: SharedMemoryClient, rows: int) -> None:
    assert_right(client, some_input(rows))


def test_an_answer_says_who_gave_it(client: SharedMemoryClient) -> None:
    answer = client.infer(some_input()[0], request_id="größe-1", deadline_us=1e7)
    assert (answer.request_id, answer.release_id, answer.variant, answer.rung) == ("größe-1", "release-one", "fp32", 0)
    assert answer.latency_us > 0
    assert answer.class_name == RELEASE_CLASSES[int(RELEASE.compute(some_input())[0].argmax())]
    assert not answer.scores.flags.writeable
    assert client.infer(some_input()).request_id


RELEASE_CLASSES = ("low", "middle", "high")


def test_input_that_is_written_in_place(client: SharedMemoryClient) -> None:
    for seed in range(3):
        x = some_input(2, seed=seed)
        room = client.room(2)
        room[:] = x
        np.testing.assert_allclose(client.infer(room).scores, RELEASE.compute(x)[0], atol=1e-5)
        assert_right(client, some_input(1, seed=seed))
    with pytest.raises(UnfitInputError, match="1 to 64"):
        client.room(65)


def test_labels_join_its_requests(doors: Doors, client: SharedMemoryClient) -> None:
    client.infer(some_input(2), request_id="labelled")
    outcome = doors.core.labels.add([Label("labelled", 1, "high"), Label("never", 0, "high")])
    assert (outcome.accepted, [refusal.index for refusal in outcome.refused]) == (1, [1])


def test_requests_under_way_at_the_same_time(client: SharedMemoryClient) -> None:
    tickets = [client.submit(some_input(1, seed=seed)) for seed in range(4)]
    with pytest.raises(BusyError, match="4 slots"):
        client.submit(some_input())
    for seed in (2, 0, 3, 1):
        answer = client.receive(tickets[seed])
        np.testing.assert_allclose(answer.scores, RELEASE.compute(some_input(1, seed=seed))[0], atol=1e-5)
    assert_right(client, some_input())


def test_several_clients_at_once(doors: Doors) -> None:
    failures: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            with SharedMemoryClient.connect(doors.layout.root) as own:
                for turn in range(50):
                    assert_right(own, some_input(1, seed=seed * 100 + turn))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


@pytest.mark.parametrize(
    ("x", "options", "error", "says"),
    [
        (some_input() * np.float32("nan"), {}, RefusedRequestError, "NaN at index [0, 0, 0]"),
        (some_input() * np.float32("inf"), {}, RefusedRequestError, "index [0, 0, 0]"),
        (some_input() + 1e4, {}, RefusedRequestError, "from -100 to 100"),
        (some_input()[:, :1], {}, UnfitInputError, "got [1, 1, 3]"),
        (some_input(65), {}, UnfitInputError, "[1..64, 2, 3]"),
        (some_input().astype(np.float64), {}, UnfitInputError, "float64"),
        ([1.0], {}, UnfitInputError, "list"),
        (some_input(), {"request_id": "x" * 129}, RefusedRequestError, "128 bytes"),
        (some_input(), {"request_id": "a\0b"}, RefusedRequestError, "zeros"),
        (some_input(), {"deadline_us": 0}, RefusedRequestError, "above 0"),
        (some_input(), {"deadline_us": 1e-3}, LateError, "deadline"),
    ],
)
def test_refusals(
    client: SharedMemoryClient, x: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        client.infer(x, **options)
    assert says in str(caught.value)
    assert_right(client, some_input())


def test_refusals_are_counted(doors: Doors, client: SharedMemoryClient) -> None:
    before = doors.engine.status().counters
    with pytest.raises(RefusedRequestError):
        client.infer(some_input() * np.float32("nan"))
    after = doors.engine.status().counters
    assert after.refused["missing"] == before.refused["missing"] + 1
    assert (after.requests, after.errors) == (before.requests, before.errors)


class RawClient:
    """A client that writes what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.descriptor = -1

    def agree(self, rows: int = 1) -> ClientRegion:
        self.socket.send(layout.encode_hello(layout.Hello(1, rows)))
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1024, 1)
        self.descriptor = os.dup(descriptors[0])
        return ClientRegion(layout.decode_welcome(data).geometry, descriptors[0])

    def ring(self, slot: int = 0, kind: int = layout.Kind.RING) -> bytes:
        self.socket.send(layout.HEAD.pack(kind, slot, 7))
        return self.socket.recv(1024)

    def write(self, region: ClientRegion, data: bytes) -> None:
        os.pwrite(self.descriptor, data, region.geometry.slot_offset(0))

    def close(self) -> None:
        self.socket.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)


@pytest.fixture
def raw(doors: Doors) -> Iterator[RawClient]:
    opened = RawClient(doors.layout.shared_memory_socket)
    yield opened
    opened.close()


def header(rows: int = 1, *, id_bytes: int = 0, size: int = 24, request_id: bytes = b"") -> bytes:
    """A request header, as docs/shared-memory.md has it."""
    return struct.pack("<IIQQQ128s", rows, id_bytes, size, 0, 0, request_id)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (header(0, size=0), "rows: expected 1 to 1"),
        (header(2, size=48), "rows: expected 1 to 1"),
        (header(0xFFFFFFFF), "rows"),
        (header(size=1 << 63), "input_bytes: expected 24"),
        (header(size=20), "input_bytes: expected 24"),
        (header(id_bytes=129), "id_bytes: expected at most 128"),
        (header(id_bytes=0xFFFFFFFF), "id_bytes: expected at most 128"),
        (header(id_bytes=4, request_id=b"\xff\xfe\xfd\xfc"), "UTF-8"),
        (header(id_bytes=3, request_id=b"a\0b"), "zeros"),
    ],
)
def test_headers_that_lie(raw: RawClient, client: SharedMemoryClient, written: bytes, says: str) -> None:
    region = raw.agree()
    raw.write(region, written)
    assert layout.HEAD.unpack(raw.ring()) == (layout.Kind.DONE, 0, 7)
    answer = region.read_header(0)
    assert answer.status == layout.Status.INVALID
    assert says in answer.error
    region.rooms.inputs[0][:] = some_input()
    raw.write(region, header())
    raw.ring()
    assert region.read_header(0).status == layout.Status.OK
    assert_right(client, some_input())


@pytest.mark.parametrize(
    "message",
    [
        b"\0" * 8,
        b"\xff" * 8,
        b"x",
        b"x" * 20,
        b"x" * 5000,
        layout.encode_hello(layout.Hello(0, 1)),
        layout.encode_hello(layout.Hello(9, 1)),
        layout.encode_hello(layout.Hello(1, 65)),
        layout.encode_hello(layout.Hello(1, 1)).replace(b"SKRY\x01", b"SKRY\x02"),
        layout.HEAD.pack(layout.Kind.RING, 0, 1),
    ],
)
def test_messages_that_are_none(raw: RawClient, client: SharedMemoryClient, message: bytes) -> None:
    raw.socket.send(message)
    status, error = layout.decode_refused(raw.socket.recv(1024))
    assert (status, bool(error)) == (layout.Status.PROTOCOL, True)
    assert raw.socket.recv(1024) == b""
    assert_right(client, some_input())


def test_a_ring_for_a_slot_that_is_not_there(raw: RawClient, client: SharedMemoryClient) -> None:
    raw.agree()
    assert layout.decode_refused(raw.ring(slot=1))[0] == layout.Status.PROTOCOL
    assert_right(client, some_input())


def test_memory_cannot_be_shrunk_and_scribbling_harms_its_writer_only(
    raw: RawClient, client: SharedMemoryClient
) -> None:
    region = raw.agree()
    with pytest.raises(PermissionError):
        os.ftruncate(raw.descriptor, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(raw.descriptor, 1 << 30)
    noise = np.random.default_rng(5).bytes(region.geometry.region_bytes)
    os.pwrite(raw.descriptor, noise, 0)
    raw.ring()
    assert region.read_header(0).status == layout.Status.INVALID
    assert_right(client, some_input())


def flood(raw: RawClient) -> None:
    """Ring without ever reading an answer, until nobody takes it any more."""
    for _ in range(100_000):
        raw.socket.send(layout.HEAD.pack(layout.Kind.RING, 0, 1), socket.MSG_NOSIGNAL)


def test_a_client_that_never_reads_is_put_out(
    doors: Doors, raw: RawClient, client: SharedMemoryClient, wait_until: Any
) -> None:
    raw.agree()
    connected = doors.shared_memory.clients
    raw.socket.settimeout(0.2)
    with pytest.raises(OSError):
        flood(raw)
    wait_until(lambda: doors.shared_memory.clients < connected, what="the client is put out")
    assert_right(client, some_input())


def test_one_that_dies_leaves_nothing_behind(doors: Doors, wait_until: Any) -> None:
    wait_until(lambda: doors.shared_memory.clients == 0, what="earlier clients are gone")
    dying = RawClient(doors.layout.shared_memory_socket)
    dying.agree()
    assert doors.shared_memory.clients == 1
    dying.socket.send(layout.HEAD.pack(layout.Kind.RING, 0, 1))
    dying.close()
    wait_until(lambda: doors.shared_memory.clients == 0, what="it is gone")


def test_number_of_clients_and_their_memory_are_bounded(doors: Doors, tmp_path: Path, wait_until: Any) -> None:
    door = SharedMemoryDoor(doors.core, tmp_path / "door" / "s.sock", clients=2, total_bytes=30_000)
    door.start()
    raws = [RawClient(tmp_path / "door" / "s.sock") for _ in range(3)]
    try:
        raws[0].agree()
        status, error = layout.decode_refused(raws[2].socket.recv(1024))
        assert (status, error) == (layout.Status.OVERLOADED, "2 clients are connected, and no more may be")
        raws[1].socket.send(layout.encode_hello(layout.Hello(8, 64)))
        status, error = layout.decode_refused(raws[1].socket.recv(1024))
        assert status == layout.Status.OVERLOADED
        assert "ask for fewer slots or rows" in error
        wait_until(lambda: door.clients == 1, what="both that were refused are gone")
    finally:
        for one in raws:
            one.close()
        door.stop()
    assert not (tmp_path / "door" / "s.sock").exists()


def test_only_the_own_user_and_group_can_open_the_socket(doors: Doors) -> None:
    path = doors.layout.shared_memory_socket
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o660, 0o750)


def test_no_release_yet(tmp_path: Path) -> None:
    with open_doors(tmp_path, None) as doors:
        with pytest.raises(NoActiveReleaseError, match="no release active"):
            SharedMemoryClient.connect(doors.layout.root)
        doors.activate(RELEASE)
        with SharedMemoryClient.connect(doors.layout.root) as client:
            assert_right(client, some_input())


def test_no_process(tmp_path: Path) -> None:
    with pytest.raises(DisconnectedError, match=r"no serving process answers at .*shared-memory.sock"):
        SharedMemoryClient.connect(tmp_path)


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30) / ("longer" * 10)
    root.mkdir(parents=True)
    with open_doors(root) as doors, SharedMemoryClient.connect(doors.layout.root) as client:
        assert_right(client, some_input())
