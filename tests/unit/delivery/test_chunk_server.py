"""The chunk server on a link and a store that can misbehave."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.bitmap import encode_bitmap
from skerry_contract.limits import CHUNK_BYTES
from skerry_contract.sampling import EVERY_RANK
from skerry_contract.v1.delivery_pb2 import Chunk, ChunkRefusal, ChunkRequest
from skerry_server.delivery.carousel import GATHER_S
from skerry_server.delivery.chunk_server import EXPIRY_S, IN_FLIGHT, ChunkServer
from skerry_server.errors import NotFoundError, PlatformError

DATA = bytes(range(256)) * 9  # 2304 bytes: 3 chunks of 1024, 1024, 256
SHA = hashlib.sha256(DATA).digest()


@dataclass(frozen=True)
class Published:
    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None


class FakeLink:
    """Acknowledges at once, later or never."""

    def __init__(self) -> None:
        self.messages: list[Published] = []
        self.futures: list[Future[None]] = []
        self.handlers: dict[str, Callable[[str, bytes], None]] = {}
        self.outcome: str = "now"
        self.connected = True

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        self.messages.append(Published(topic, payload, retain, expiry_s))
        future: Future[None] = Future()
        if self.outcome == "now":
            future.set_result(None)
        elif self.outcome == "fails":
            future.set_exception(PlatformError("the connection was lost", remedy="it is tried again"))
        self.futures.append(future)
        return future

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None], /) -> None:
        self.handlers[topic_filter] = handler


class FakeStore:
    """A store with one file that can go away."""

    def __init__(self) -> None:
        self.blobs = {SHA.hex(): DATA}
        self.gone = False

    def size(self, sha256: str, /) -> int:
        if sha256 not in self.blobs:
            raise NotFoundError("artifact", sha256)
        return len(self.blobs[sha256])

    def open_chunk(self, file_sha256_hex: str, index: int, chunk_bytes: int, /) -> bytes:
        if self.gone:
            raise NotFoundError("artifact", file_sha256_hex)
        return self.blobs[file_sha256_hex][index * chunk_bytes : (index + 1) * chunk_bytes]


class Bench:
    def __init__(self) -> None:
        self.link, self.store, self.now = FakeLink(), FakeStore(), 0.0
        self.server = ChunkServer(self.link, self.store, monotonic=self._tick, listen=self._listen)
        self.server.start()

    def _tick(self) -> float:
        self.now += 0.001
        return self.now

    def _listen(self, spoken: threading.Event, seconds: float) -> None:
        self.now += 0.0 if spoken.is_set() else seconds

    def ask(self, device: str, missing: list[int], *, topic_device: str | None = None, **fields: object) -> None:
        values: dict[str, object] = {
            "device_id": device,
            "file_sha256": SHA,
            "missing_bitmap": encode_bitmap(missing, 3),
            "chunk_count": 3,
            "window": 8,
            "chunk_bytes": 1024,
            **fields,
        }
        payload = ChunkRequest(**values).SerializeToString()  # type: ignore[arg-type]  # fields by name
        self.link.handlers["skerry/v1/d/+/need"](f"skerry/v1/d/{topic_device or device}/need", payload)

    def steps(self, count: int = 3) -> None:
        for _ in range(count):
            self.server.step()
            self.now += GATHER_S

    def chunks(self) -> list[tuple[str, int]]:
        return [(m.topic, Chunk.FromString(m.payload).index) for m in self.link.messages if "/bulk/" in m.topic]

    def refusals(self) -> list[tuple[str, str]]:
        return [
            (m.topic, ChunkRefusal.FromString(m.payload).reason)
            for m in self.link.messages
            if m.topic.endswith("/refuse")
        ]


def test_one_device_is_served_on_its_own_topic() -> None:
    bench = Bench()
    bench.ask("d1", [0, 2])
    bench.steps()
    topic = f"skerry/v1/d/CN=d1/bulk/{SHA.hex()}"
    assert bench.chunks() == [(topic, 0), (topic, 2)]
    for message in bench.link.messages:
        chunk = Chunk.FromString(message.payload)
        assert chunk.file_sha256 == SHA
        assert chunk.data == DATA[chunk.index * 1024 : (chunk.index + 1) * 1024]
        assert chunk.sha256 == hashlib.sha256(chunk.data).digest()
        assert (message.retain, message.expiry_s) == (False, EXPIRY_S)


def test_two_devices_are_served_by_one_broadcast() -> None:
    bench = Bench()
    bench.ask("d1", [0, 1, 2])
    bench.ask("d2", [0, 1, 2])
    bench.steps()
    topic = f"skerry/v1/bulk/{SHA.hex()}"
    assert bench.chunks() == [(topic, 0), (topic, 1), (topic, 2)]
    counters = bench.server.counters
    assert (counters.broadcasts, counters.unicasts, counters.payload_bytes) == (3, 0, len(DATA))


@pytest.mark.parametrize(
    "fields",
    [
        {"topic_device": "d2"},
        {"device_id": ""},
        {"file_sha256": SHA[:31]},
        {"chunk_bytes": CHUNK_BYTES + 1},
        {"chunk_count": 0, "missing_bitmap": b""},
        {"chunk_count": 2**32 - 1},
        {"missing_bitmap": b"\x01\x00"},
        {"missing_bitmap": b""},
        {"missing_bitmap": b"\x08"},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_a_malformed_request_is_dropped(fields: dict[str, object]) -> None:
    bench = Bench()
    bench.ask("d1", [0], **fields)  # type: ignore[arg-type]  # fields by name
    bench.link.handlers["skerry/v1/d/+/need"]("skerry/v1/d/d1/need", b"\xff\xff\xff")
    bench.steps()
    assert bench.link.messages == []
    assert bench.server.counters.malformed == 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file_sha256": bytes(32)}, "there is no artifact"),
        ({"chunk_count": 4, "missing_bitmap": b"\x0f"}, "request.chunk_count: expected 3, got 4"),
        ({"chunk_bytes": 0}, "request.chunk_count: expected 1, got 3"),
    ],
    ids=["unknown file", "wrong count", "other chunk size"],
)
def test_a_request_that_cannot_be_served_is_refused(fields: dict[str, object], reason: str) -> None:
    bench = Bench()
    bench.ask("d1", [0], **fields)  # type: ignore[arg-type]  # fields by name
    bench.ask("d2", [1])
    bench.steps()
    assert len(bench.refusals()) == 1
    topic, said = bench.refusals()[0]
    assert topic == "skerry/v1/d/d1/refuse"
    assert reason in said
    assert bench.chunks() == [(f"skerry/v1/d/CN=d2/bulk/{SHA.hex()}", 1)], "others are served"


def test_a_file_that_goes_away_is_refused_to_everybody_who_waits() -> None:
    bench = Bench()
    bench.ask("d1", [0, 1])
    bench.ask("d2", [2])
    bench.store.gone = True
    bench.steps()
    assert {topic for topic, _ in bench.refusals()} == {"skerry/v1/d/d1/refuse", "skerry/v1/d/d2/refuse"}
    assert bench.chunks() == []


def test_no_more_is_in_flight_than_the_broker_has_acknowledged() -> None:
    bench = Bench()
    data = bytes(100_000)
    digest = hashlib.sha256(data)
    bench.store.blobs[digest.hexdigest()] = data
    bench.link.outcome = "later"
    for number in range(12):
        bench.ask(
            f"d{number}",
            [],
            file_sha256=digest.digest(),
            missing_bitmap=encode_bitmap(range(16), 100),
            chunk_count=100,
            chunk_bytes=1000,
        )
    sizes = []
    original = bench.link.publish

    def publish(topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        future = original(topic, payload, retain=retain, expiry_s=expiry_s)
        flying = [known for known in bench.link.futures if not known.done()]
        sizes.append(len(flying))
        if len(flying) == IN_FLIGHT:
            for known in flying[:4]:
                known.set_result(None)
        return future

    bench.link.publish = publish  # type: ignore[method-assign]  # the fake looks at itself
    bench.steps(20)
    assert len(bench.chunks()) == 16
    assert max(sizes) == IN_FLIGHT


def test_nothing_is_taken_for_sent_while_there_is_no_connection() -> None:
    bench = Bench()
    bench.ask("d1", [0])
    bench.link.connected = False
    bench.steps()
    assert bench.link.messages == []
    bench.link.connected = True
    bench.steps()
    assert len(bench.chunks()) == 1


def test_a_lost_connection_is_survived_and_what_is_asked_again_is_sent_again() -> None:
    bench = Bench()
    bench.link.outcome = "fails"
    bench.ask("d1", [0])
    bench.steps()
    bench.link.outcome = "now"
    bench.now += 2
    bench.ask("d1", [0], quiet_ms=2_000)
    bench.steps()
    assert len(bench.chunks()) == 2
    bench.ask("d1", [])
    bench.steps()
    assert len(bench.chunks()) == 2


@given(st.text(max_size=80), st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_on_the_wire_are_dropped_or_answered(device: str, payload: bytes) -> None:
    bench = Bench()
    for topic in (f"skerry/v1/d/{device}/need", "skerry/v1/d/d1/need"):
        bench.link.handlers["skerry/v1/d/+/need"](topic, payload)
    mutated = bytearray(
        ChunkRequest(
            device_id="d1", file_sha256=SHA, missing_bitmap=b"\x07", chunk_count=3, chunk_bytes=1024
        ).SerializeToString()
    )
    for position, byte in enumerate(payload[: len(mutated)]):
        mutated[position] ^= byte & 1
    bench.link.handlers["skerry/v1/d/+/need"]("skerry/v1/d/d1/need", bytes(mutated))
    bench.server.step()


def test_a_chunk_says_who_reports_progress() -> None:
    bench = Bench()
    bench.ask("d1", [0, 1])
    bench.ask("d2", [1])
    bench.steps()
    said = {
        chunk.index: (chunk.report_below, chunk.report_every)
        for chunk in (Chunk.FromString(m.payload) for m in bench.link.messages)
    }
    assert said == {1: (EVERY_RANK, 8), 0: (EVERY_RANK, 1)}
