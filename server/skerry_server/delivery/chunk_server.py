"""Answers devices that ask for chunks: validates, and publishes what the carousel decides, at a bounded pace.

Invariants: nothing is read or sent for a request before it was checked against its topic and the stored file; at most
:data:`IN_FLIGHT` messages are without the broker's acknowledgement; chunks are never retained and expire after
:data:`EXPIRY_S`; what a broker or a device loses is asked for again by the device, so nothing is remembered here that a
restart would miss.

The link's dispatcher thread only puts requests into a bounded inbox; the controller's thread does the rest.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol

from skerry_contract.errors import WireError
from skerry_contract.limits import CHUNK_BYTES, FILE_BYTES
from skerry_contract.manifest import chunk_count
from skerry_contract.topics import (
    DeviceTopic,
    bulk_topic,
    device_bulk_topic,
    device_topic,
    every_device_filter,
    parse_topic,
)
from skerry_contract.v1.delivery_pb2 import Chunk, ChunkRefusal, ChunkRequest
from skerry_contract.wire import parse_message
from skerry_server.delivery.carousel import BusyError, Carousel, FileKey, Request, Send
from skerry_server.errors import SkerryError

log = logging.getLogger(__name__)
#: Messages without the broker's acknowledgement.
IN_FLIGHT = 16
#: How long the broker keeps a chunk, and a refusal, for a device (seconds).
EXPIRY_S = 60
#: Requests that wait to be looked at; one that finds no room is asked again by its device.
INBOX = 16_384
#: How long one step may send, and how long it waits for the broker's acknowledgement (seconds).
STEP_S = 1.0
ACKNOWLEDGE_S = 10.0
#: How long a step waits for devices to say more while there is something to deliver (seconds).
LISTEN_S = 0.02


class Link(Protocol):
    """The part of the server's link that delivery uses."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        """Send with QoS 1; the future is done at the broker's acknowledgement."""
        ...

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None], /) -> None:
        """Hand messages of a filter to ``handler``, on the link's dispatcher thread."""
        ...


class Artifacts(Protocol):
    """The part of the artifact store that delivery uses."""

    def size(self, sha256: str, /) -> int:
        """Bytes of a stored file; raises NotFoundError."""
        ...

    def open_chunk(self, file_sha256_hex: str, index: int, chunk_bytes: int, /) -> bytes:
        """A chunk of a stored file.

        Raises:
            SkerryError: There is no such file, or its content is not what it was.
        """
        ...


@dataclass
class DeliveryCounters:
    """What has been sent since the start.

    Attributes:
        broadcasts: Chunks to every device that lacks them.
        unicasts: Chunks to one device.
        refusals: Requests that were refused.
        malformed: Requests that were dropped.
        payload_bytes: Bytes of chunk data published.
    """

    broadcasts: int = 0
    unicasts: int = 0
    refusals: int = 0
    malformed: int = 0
    payload_bytes: int = 0


class ChunkServer:
    """A controller that delivers chunks."""

    name = "delivery"
    period_s = 0.05

    def __init__(
        self,
        link: Link,
        artifacts: Artifacts,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        listen: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        """Nothing happens before :meth:`start`.

        Args:
            link: To the broker.
            artifacts: The files.
            monotonic: Seconds.
            listen: Waits for an event for some seconds at most.
        """
        self._link = link
        self._artifacts = artifacts
        self._monotonic = monotonic
        self._listen = listen
        self._inbox: queue.Queue[tuple[FileKey, Request]] = queue.Queue(INBOX)
        self._spoken = threading.Event()
        self._carousel = Carousel()
        self._flying: set[Future[None]] = set()
        self._lock = threading.Lock()
        self.counters = DeliveryCounters()

    def start(self) -> None:
        """Subscribe to the requests of every device."""
        self._link.subscribe(every_device_filter(DeviceTopic.NEED), self.handle)

    def handle(self, topic: str, payload: bytes) -> None:
        """Take in a request from the wire; a malformed one is logged and dropped. Does no I/O."""
        try:
            device_id = parse_topic(topic).device_id or ""
            request = parse_message(ChunkRequest, payload)
            if request.device_id != device_id:
                raise WireError("request.device_id", expected=device_id, got=request.device_id)
            if len(request.file_sha256) != 32:
                raise WireError("request.file_sha256", expected="32 bytes", got=f"{len(request.file_sha256)} bytes")
            chunk_bytes = request.chunk_bytes or CHUNK_BYTES
            if not 1 <= chunk_bytes <= CHUNK_BYTES:
                raise WireError("request.chunk_bytes", expected=f"1 to {CHUNK_BYTES}", got=chunk_bytes)
            most = chunk_count(FILE_BYTES, chunk_bytes)
            if not 1 <= request.chunk_count <= most:
                raise WireError("request.chunk_count", expected=f"1 to {most}", got=request.chunk_count)
            missing = _bits(request.missing_bitmap, request.chunk_count)
            said = Request(
                device_id, missing, request.chunk_count, window=request.window, quiet_s=request.quiet_ms / 1000
            )
            self._inbox.put_nowait((FileKey(request.file_sha256.hex(), chunk_bytes), said))
            self._spoken.set()
        except WireError as error:
            with self._lock:
                self.counters.malformed += 1
            log.warning("%s: %s: ignored", topic, error)
        except queue.Full:
            log.warning("%s: %d requests wait already: ignored, the device asks again", topic, INBOX)

    def step(self) -> None:
        """Look at new requests and send for at most about a second."""
        until = self._monotonic() + STEP_S
        self._admit()
        while not self._carousel.idle and self._link.connected and self._monotonic() < until:
            self._reap(block=len(self._flying) >= IN_FLIGHT)
            room = IN_FLIGHT - len(self._flying)
            sends = self._carousel.take(room, self._monotonic())
            for send in sends:
                self._send(send)
            if room and not sends:
                self._listen(self._spoken, LISTEN_S)
            self._admit()
        self._reap(block=False)

    def _admit(self) -> None:
        self._spoken.clear()
        while True:
            try:
                file, request = self._inbox.get_nowait()
            except queue.Empty:
                return
            try:
                count = self._carousel.count_of(file) or chunk_count(
                    self._artifacts.size(file.sha256_hex), file.chunk_bytes
                )
                if count != request.count:
                    raise WireError("request.chunk_count", expected=str(count), got=request.count)
                self._carousel.want(file, request, self._monotonic())
            except (SkerryError, WireError, BusyError) as error:
                self._refuse(request.device_id, bytes.fromhex(file.sha256_hex), str(error))

    def _send(self, send: Send) -> None:
        try:
            data = self._artifacts.open_chunk(send.file.sha256_hex, send.index, send.file.chunk_bytes)
        except SkerryError as error:
            for device_id in {*self._carousel.drop(send.file), *([send.device_id] if send.device_id else [])}:
                self._refuse(device_id, bytes.fromhex(send.file.sha256_hex), str(error))
            return
        digest = send.file.sha256_hex
        chunk = Chunk(
            file_sha256=bytes.fromhex(digest),
            index=send.index,
            data=data,
            sha256=hashlib.sha256(data).digest(),
            report_below=send.report_below,
            report_every=send.report_every,
        )
        topic = bulk_topic(digest) if send.device_id is None else device_bulk_topic(send.device_id, digest)
        self._publish(topic, chunk.SerializeToString())
        with self._lock:
            self.counters.broadcasts += send.device_id is None
            self.counters.unicasts += send.device_id is not None
            self.counters.payload_bytes += len(data)

    def _refuse(self, device_id: str, file_sha256: bytes, reason: str) -> None:
        log.warning("%s asks for file %s: %s", device_id, file_sha256.hex()[:12], reason)
        with self._lock:
            self.counters.refusals += 1
        message = ChunkRefusal(file_sha256=file_sha256, reason=reason)
        self._publish(device_topic(device_id, DeviceTopic.REFUSE), message.SerializeToString())

    def _publish(self, topic: str, payload: bytes) -> None:
        self._flying.add(self._link.publish(topic, payload, expiry_s=EXPIRY_S))

    def _reap(self, *, block: bool) -> None:
        """Take note of what the broker acknowledged; what failed is asked for again by its device."""
        if block:
            done, _ = wait(self._flying, timeout=ACKNOWLEDGE_S, return_when=FIRST_COMPLETED)
            if not done:
                log.warning("the broker has not acknowledged a chunk for %.0f s", ACKNOWLEDGE_S)
                self._flying.clear()
                return
        finished = {future for future in self._flying if future.done()}
        self._flying -= finished
        for future in finished:
            if not future.cancelled() and (error := future.exception()) is not None:
                log.warning("a chunk could not be published: %s", error)


def _bits(missing_bitmap: bytes, count: int) -> int:
    """The bitmap as an integer; raises WireError if its size or a bit is wrong."""
    if len(missing_bitmap) != -(-count // 8):
        raise WireError(
            "request.missing_bitmap",
            expected=f"{-(-count // 8)} bytes for {count} chunks",
            got=f"{len(missing_bitmap)} bytes",
        )
    bits = int.from_bytes(missing_bitmap, "little")
    if bits >> count:
        raise WireError("request.missing_bitmap", expected=f"bits below {count}", got=f"bit {bits.bit_length() - 1}")
    return bits
