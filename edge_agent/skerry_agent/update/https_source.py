"""Chunks over HTTPS instead of MQTT: takes the downloader's requests and answers them with the same messages.

For networks where only HTTPS passes, or where a cache stands before the control plane. To the
:class:`~skerry_agent.update.downloader.Downloader` it is the control connection that carries its requests and the data
connection that brings chunks: every range of ``GET <device api>/device/v1/files/<sha256>`` is cut into chunks, which
are posted as events on the topics that the broker would use, and checked against the manifest like those.

One thread asks for one range at a time, so the device never has more on its way than :data:`RUN_CHUNKS`. While the
server or the network fails it waits, longer and longer, and goes on with what is missing; what the server refuses is
told as a refusal, and asked for again by the downloader. Nothing is trusted here but the server's certificate.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.errors import DeviceError, InputError
from skerry_agent.link.backoff import Backoff
from skerry_agent.link.mqtt import Incoming, LinkEvent
from skerry_contract.limits import CHUNK_BYTES
from skerry_contract.topics import DeviceTopic, device_bulk_topic, device_topic
from skerry_contract.v1.delivery_pb2 import Chunk, ChunkRefusal, ChunkRequest

log = logging.getLogger(__name__)
HTTPS = "https"
#: Chunks of one range: about 2 MB.
RUN_CHUNKS = 16
#: How long the server may be silent, and how long one range may take (seconds).
SILENCE_S = 30.0
RUN_S = 300.0
#: Files that are wanted at once.
FILES = 256
#: How long the thread is waited for (seconds); it may hang in a look-up of the server's name.
JOIN_S = 5.0
_SIZE_DIGITS = 18


class FileRefusedError(Exception):
    """The server will not serve the file."""


@dataclass(frozen=True)
class _Wish:
    """What is missing of one file.

    Attributes:
        missing: Bitmap of chunks that are to be asked for.
        count: Chunks of the file.
        chunk_bytes: Size of every chunk but the last.
    """

    missing: int
    count: int
    chunk_bytes: int

    def run(self) -> range:
        """The first chunks that are missing in a row, :data:`RUN_CHUNKS` at most."""
        first = (self.missing & -self.missing).bit_length() - 1
        end = first
        while end - first < RUN_CHUNKS and self.missing >> end & 1:
            end += 1
        return range(first, end)


class HttpsSource:
    """Made once; :meth:`open` begins a download, as a data connection does."""

    def __init__(
        self,
        url: str,
        *,
        device_id: str,
        tls: Callable[[], ssl.SSLContext],
        post: Callable[[LinkEvent], bool],
        backoff: Backoff,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is sent before :meth:`open`.

        Args:
            url: ``https://host:port`` of the device API.
            device_id: This device.
            tls: Makes the TLS context of one connection; it says who we are.
            post: Takes an event; returns False, after at most a moment, if it cannot take it yet.
            backoff: Waits between attempts.
            monotonic: Seconds.

        Raises:
            InputError: The URL is not one.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise InputError("device_api", expected="a URL such as https://host:8443", got=url)
        self._address = (parts.hostname, parts.port or 443)
        self._device_id = device_id
        self._tls = tls
        self._post = post
        self._backoff = backoff
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._wishes: dict[str, _Wish] = {}
        self._running: tuple[str, int] = ("", 0)  # digest, and bitmap of the chunks that are on their way
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: http.client.HTTPSConnection | None = None

    @property
    def ready(self) -> bool:
        """Requests are always taken; they wait here for the network."""
        return True

    def open(self, _digests: list[str]) -> HttpsSource:
        """A data connection; which files are wanted, the requests say."""
        return self

    def start(self) -> None:
        """Begin to answer requests."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="https-download", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for nothing more and join the thread."""
        self._stopping.set()
        with self._changed:
            self._wishes.clear()
            self._changed.notify_all()
            connection = self._connection
        if connection is not None and (plain := connection.sock) is not None:
            with contextlib.suppress(OSError):
                plain.shutdown(2)  # wakes a read that waits
        if self._thread is not None:
            self._thread.join(JOIN_S)
            self._thread = None

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        """Take a ChunkRequest; a newer one for a file replaces the older one."""
        del topic, retain, expiry_s
        request = ChunkRequest.FromString(payload)
        digest = request.file_sha256.hex()
        missing = int.from_bytes(request.missing_bitmap, "little")
        with self._changed:
            if digest == self._running[0]:
                missing &= ~self._running[1]
            if not missing:
                self._wishes.pop(digest, None)
            elif digest in self._wishes or len(self._wishes) < FILES:
                self._wishes[digest] = _Wish(missing, request.chunk_count, request.chunk_bytes or CHUNK_BYTES)
                self._changed.notify_all()
            else:
                return False
        return True

    # The thread.

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            with self._changed:
                if not self._wishes:
                    self._changed.wait(1.0)
                    continue
                digest, wish = next(iter(self._wishes.items()))
                indices = wish.run()
                self._running = (digest, sum(1 << index for index in indices))
                self._wishes[digest] = replace(wish, missing=wish.missing & ~self._running[1])
            failed = self._fetch_run(digest, wish, indices, stopping)
            with self._changed:
                left, self._running = self._running[1], ("", 0)
                known = self._wishes.get(digest)
                if known is not None:
                    known = replace(known, missing=known.missing | left)
                    self._wishes.pop(digest)
                    if known.missing:
                        self._wishes[digest] = known
            if failed:
                self._backoff.failed()
                stopping.wait(self._backoff.delay())
            else:
                self._backoff.succeeded()
        self._disconnect()

    def _fetch_run(self, digest: str, wish: _Wish, indices: range, stopping: threading.Event) -> bool:
        """Bring one run; returns whether the network failed."""
        try:
            for index, data in self._chunks(digest, wish, indices):
                chunk = Chunk(file_sha256=bytes.fromhex(digest), index=index, data=data)
                self._deliver(device_bulk_topic(self._device_id, digest), chunk.SerializeToString(), stopping)
                with self._changed:
                    self._running = (digest, self._running[1] & ~(1 << index))
                if stopping.is_set():
                    break
        except FileRefusedError as error:
            with self._changed:
                self._wishes.pop(digest, None)
            refusal = ChunkRefusal(file_sha256=bytes.fromhex(digest), reason=str(error)[:300])
            self._deliver(device_topic(self._device_id, DeviceTopic.REFUSE), refusal.SerializeToString(), stopping)
        except (OSError, http.client.HTTPException, DeviceError) as error:
            self._disconnect()
            if not stopping.is_set():
                log.info("download from %s:%d: %s", *self._address, str(error) or type(error).__name__)
            return True
        return False

    def _chunks(self, digest: str, wish: _Wish, indices: range) -> Iterator[tuple[int, bytes]]:
        """Ask for the bytes of some chunks and cut them.

        Raises:
            FileRefusedError: The server will not serve them, or serves something else.
            OSError: The network failed.
            http.client.HTTPException: The answer is not HTTP, or ended early.
        """
        first, end = indices.start * wish.chunk_bytes, indices.stop * wish.chunk_bytes
        connection = self._connect()
        until = self._monotonic() + RUN_S
        connection.request("GET", f"/device/v1/files/{digest}", headers={"Range": f"bytes={first}-{end - 1}"})
        answer = connection.getresponse()
        if answer.status != http.client.PARTIAL_CONTENT:
            self._refuse(answer)
        size = file_size(answer.getheader("Content-Range", ""), first)
        if -(-size // wish.chunk_bytes) != wish.count:
            self._disconnect()
            raise FileRefusedError(f"the server's file has {size} bytes, not {wish.count} chunks")
        for index in indices:
            length = min(wish.chunk_bytes, size - index * wish.chunk_bytes)
            data = answer.read(length)
            if len(data) != length:
                raise http.client.IncompleteRead(data, length - len(data))
            if self._monotonic() > until:
                raise TimeoutError(f"the server took more than {RUN_S:.0f} s for {end - first} bytes")
            yield index, data
        answer.read()

    def _refuse(self, answer: http.client.HTTPResponse) -> None:
        """Raise what an answer without content means."""
        status, reason = answer.status, answer.read(2_000)
        self._disconnect()
        if status >= http.client.INTERNAL_SERVER_ERROR or status == http.client.TOO_MANY_REQUESTS:
            raise ConnectionError(f"the server answered {status}")
        raise FileRefusedError(f"{status} {reason.decode(errors='replace')[:200]}")

    def _connect(self) -> http.client.HTTPSConnection:
        if self._connection is None:
            host, port = self._address
            connection = http.client.HTTPSConnection(host, port, timeout=SILENCE_S, context=self._tls())
            with self._changed:
                self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        with self._changed:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _deliver(self, topic: str, payload: bytes, stopping: threading.Event) -> None:
        event = Incoming(HTTPS, topic, payload, lambda: None)
        while not stopping.is_set() and not self._post(event):
            pass


def file_size(content_range: str, first: int) -> int:
    """Size of the whole file, from ``Content-Range`` of an answer that begins at ``first``.

    Raises:
        FileRefusedError: It is another range, or none.
    """
    unit, _, rest = content_range.partition(" ")
    span, _, size = rest.partition("/")
    digits = size.isascii() and size.isdecimal() and len(size) <= _SIZE_DIGITS
    if unit != "bytes" or not span.startswith(f"{first}-") or not digits:
        raise FileRefusedError(f"the server answered with the range {content_range[:80]!r}")
    return int(size)


def https_source(
    config: AgentConfig,
    layout: AgentLayout,
    post: Callable[[LinkEvent], bool],
    *,
    tls: Callable[[], ssl.SSLContext],
) -> HttpsSource:
    """The source of a device; raises InputError if its setting ``device_api`` is not a URL."""
    backoff = Backoff(layout.root / "link" / f"{HTTPS}.json", ceiling_s=config.reconnect_seconds)
    return HttpsSource(config.device_api, device_id=config.device_id, tls=tls, post=post, backoff=backoff)
