"""A node's end of the lane: few requests over one TLS connection that is kept; see :mod:`skerry_contract.lane`.

Requests are signed as Flower's Fleet API wants it (flwr 1.41.0), by the time of the SuperLink. Nothing of Flower is
needed here: a device that only takes part in campaigns of its own control plane never loads it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import io
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry_agent.training.node_link import LaneAbsentError, LinkError, NotRegisteredError, RunEndedError
from skerry_agent.training.server_clock import ServerClock
from skerry_contract import lane
from skerry_contract.errors import WireError

#: How long a request may take beyond what it may wait (seconds).
PATIENCE_S = 20.0
#: A request that was refused is signed again when its time was off by more (seconds); the SuperLink allows 5.
CLOCK_OFF_S = 4.0
#: A signed time is used again for so long (seconds): signing costs a small device some milliseconds, and the SuperLink,
#: which accepts it for minutes, does not check the same one twice within a second.
SIGNED_S = 1.0
#: Bytes of a blob that are taken at a time: they are still in the processor's cache when they are looked at again.
PIECE_BYTES = 1 << 18
#: Longest reason of a refusal that is read (bytes).
REASON_BYTES = 2000


class BlobMissingError(Exception):
    """The SuperLink has not got a blob (any more) that the answer names."""


@dataclass(frozen=True)
class Message:
    """An instruction.

    Attributes:
        message_id: Its name.
        run_id: Flower run that asks.
        kind: Flower message type.
        left_s: Seconds until nobody waits for the answer any more.
        frame: Its fields.
    """

    message_id: str
    run_id: str
    kind: str
    left_s: float
    frame: bytes


class LaneClient:
    """One connection; used by one thread, except :meth:`interrupt`."""

    def __init__(
        self,
        address: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        tls: Callable[[], ssl.SSLContext],
        clock: ServerClock,
    ) -> None:
        """Connect to nothing yet.

        Args:
            address: host:port of the SuperLink.
            key: The device's node key.
            tls: Makes the context of a connection.
            clock: Tells the SuperLink's time.
        """
        self._address = address
        self._key = key
        public = key.public_key()
        self.public_key: bytes = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._tls = tls
        self._clock = clock
        self._connection: http.client.HTTPSConnection | None = None
        self._signature: tuple[float, dict[str, str]] | None = None
        self.node_id = 0

    def attach(self) -> int:
        """Become a node; returns its identifier.

        Raises:
            LaneAbsentError: The SuperLink has no lane.
            NotRegisteredError: It does not know the key.
            LinkError: It cannot be reached.
        """
        head, _ = self._frame("POST", lane.ATTACH_PATH, lane.pack({"public_key": self.public_key.decode()}))
        try:
            self.node_id = int(head["node_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise LinkError(f"the SuperLink names no node: {error}") from error
        return self.node_id

    def exchange(
        self, *, wait_s: float, message_id: str = "", answer: bytes = lane.pack({})
    ) -> tuple[bool, Message | None]:
        """Leave an answer, if there is one, and wait for the next instruction.

        Args:
            wait_s: How long; below 0: only say that the node is alive.
            message_id: What is answered; empty: nothing.
            answer: Frame of fields or of an error.

        Returns:
            Whether somebody waited for the answer, and the next instruction.

        Raises:
            BlobMissingError: The answer names a blob that has to be put first.
            NotRegisteredError: The SuperLink does not know the key.
            LinkError: It cannot be reached.
        """
        head: dict[str, Any] = {"wait_s": wait_s}
        if message_id:
            head["answer"] = message_id
        told, frame = self._frame("POST", lane.EXCHANGE_PATH, lane.pack(head, answer), wait_s=max(0.0, wait_s))
        accepted = told.get("accepted") is True
        message = told.get("message")
        if message is None:
            return accepted, None
        try:
            names = (str(message["message_id"]), str(message["run_id"]), str(message["kind"]))
            return accepted, Message(*names, float(message["left_s"]), frame)
        except (KeyError, TypeError, ValueError) as error:
            raise LinkError(f"the instruction cannot be read: {error}") from error

    def detach(self) -> None:
        """Stop being a node; raises as :meth:`exchange`."""
        self._frame("POST", lane.DETACH_PATH, lane.pack({}))

    def get_blob(self, sha256: str, size: int, *, take: Callable[[memoryview], object], start: int = 0) -> int:
        """Fetch a blob, or the rest of it; returns how many bytes there are now.

        Args:
            sha256: Its name.
            size: Its size (bytes).
            take: Gets every piece, in order, while the next ones are on their way; must not keep it.
            start: How many bytes are there already.

        Raises:
            LinkError: The connection broke before the first byte of this attempt, or the SuperLink refuses.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        response = self._request("GET", lane.BLOB_PREFIX + sha256, b"", headers)
        self._check(response)
        if response.length != size - start:
            self.close()
            raise LinkError(f"blob {sha256[:12]} has {response.length} bytes more, not {size - start}")
        position = start
        piece = memoryview(bytearray(min(PIECE_BYTES, size - start)))
        try:
            while position < size and (got := response.readinto(piece[: size - position])):
                take(piece[:got])
                position += got
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if position == start:
                raise LinkError(f"{type(error).__name__}: {error}") from error
        return position

    def put_blob(self, sha256: str, data: bytes, *, message_id: str) -> None:
        """Put a blob before the answer that names it; raises RunEndedError when nobody waits for the answer."""
        headers = {lane.MESSAGE_HEADER: message_id, "content-type": "application/octet-stream"}
        response = self._request("PUT", lane.BLOB_PREFIX + sha256, data, headers)
        self._check(response)
        response.read()

    def interrupt(self) -> None:
        """Make a request that waits in another thread fail now."""
        connection = self._connection
        plain = connection.sock if connection is not None else None
        if plain is not None:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(plain, socket.SHUT_RDWR)  # below TLS, whose state is the other thread's

    def close(self) -> None:
        """Let go of the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _frame(self, method: str, path: str, body: bytes, *, wait_s: float = 0.0) -> tuple[dict[str, Any], bytes]:
        response = self._request(method, path, body, {}, wait_s=wait_s)
        self._check(response)
        try:
            data = response.read(lane.FRAME_BYTES + lane.HEAD_BYTES + 1)
            return lane.unpack(data, most=lane.FRAME_BYTES + lane.HEAD_BYTES)
        except (OSError, http.client.HTTPException, WireError) as error:
            self.close()
            raise LinkError(f"{type(error).__name__}: {error}") from error

    def _check(self, response: http.client.HTTPResponse) -> None:
        status = response.status
        if status in (200, 201, 206):
            return
        try:
            reason = response.read(REASON_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            reason = ""
        self.close()
        if status == http.client.UNAUTHORIZED:
            raise NotRegisteredError(reason or "the SuperLink does not know this node")
        if status in (http.client.NOT_FOUND, http.client.METHOD_NOT_ALLOWED) and not self.node_id:
            raise LaneAbsentError(f"HTTP {status}: {reason}")
        if status == http.client.CONFLICT:
            raise BlobMissingError(reason)
        if status == http.client.GONE:
            raise RunEndedError(reason)
        raise LinkError(f"HTTP {status}: {reason}")

    def _request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, wait_s: float = 0.0
    ) -> http.client.HTTPResponse:
        """Send, once more over a new connection if the kept one had been closed, or if the signed time was wrong."""
        for attempt in (1, 2):
            kept = self._connection is not None
            signed_s, signed = self._sign()
            try:
                response = self._send(method, path, body, {**headers, **signed}, wait_s)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                self.close()
                if kept and attempt == 1:
                    continue
                raise LinkError(f"{type(error).__name__}: {error}") from error
            except (OSError, http.client.HTTPException) as error:
                self.close()
                raise LinkError(f"{type(error).__name__}: {error}") from error
            self._clock.learn(response.headers.get("date"))
            off = abs(self._clock.now() - signed_s) > CLOCK_OFF_S
            if response.status == http.client.UNAUTHORIZED:
                self._signature = None
            if attempt == 1 and response.status == http.client.UNAUTHORIZED and off:
                self.close()
                continue
            return response
        raise AssertionError  # the second attempt returned or raised

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], wait_s: float
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(self._address, timeout=PATIENCE_S, context=self._tls())
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sock.settimeout(PATIENCE_S + wait_s)
        self._connection.request(method, path, body=body or None, headers=dict(headers))
        return self._connection.getresponse()

    def _sign(self) -> tuple[float, dict[str, str]]:
        """The time that is signed, and the headers that say so; those of a moment ago serve again."""
        at_s = self._clock.now()
        if self._signature is None or not 0 <= at_s - self._signature[0] < SIGNED_S:
            timestamp = datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat()
            signature = self._key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))
            headers = {
                lane.KEY_HEADER: b64encode(self.public_key).decode(),
                lane.TIME_HEADER: timestamp,
                lane.SIGNATURE_HEADER: b64encode(signature).decode(),
            }
            self._signature = (at_s, headers)
        return self._signature[0], {lane.NODE_HEADER: str(self.node_id), **self._signature[1]}


def fetch(client: LaneClient, sha256: str, size: int, *, attempts: int = 5) -> bytes:
    """A blob, checked; what arrived is kept when the connection breaks.

    Raises:
        LinkError: It could not be fetched; another time it may.
        WireError: It is not what its name says.
    """
    stream, digest = io.BytesIO(), hashlib.sha256()
    if size:  # as large as it will be: growing would copy what is there again and again
        stream.seek(size - 1)
        stream.write(b"\0")
        stream.seek(0)

    def take(piece: memoryview) -> None:
        stream.write(piece)
        digest.update(piece)

    position = 0
    for attempt in range(1, attempts + 1):
        try:
            position = client.get_blob(sha256, size, take=take, start=position)
        except LinkError:
            if attempt == attempts:
                raise
        if position == size:
            break
    if position != size:
        raise LinkError(f"blob {sha256[:12]} broke off at {position} of {size} bytes")
    if digest.hexdigest() != sha256:
        raise WireError("blob", expected=f"content of digest {sha256}", got="another content")
    return stream.getvalue()
