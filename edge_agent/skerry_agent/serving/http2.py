"""One connection of the gRPC door without the socket: what HTTP/2 and gRPC's framing make of its bytes.

HTTP/2 is nghttp2's (``_http2.c``), which is there where its headers and a compiler were when the agent was installed;
elsewhere :data:`COMPILED` is False, and the door is grpcio's (:mod:`.grpcio_door`). Both answer the same requests in
the same way; this one takes half the time, and needs neither a thread for each request nor 15 MB.

Sources: RFC 9113; "gRPC over HTTP/2" (grpc/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast


class Problem(enum.IntEnum):
    """What is wrong with a request before anybody looks into its message."""

    NONE = 0
    TOO_LARGE = 1
    NOT_GRPC = 2
    BROKEN = 3


class Request(NamedTuple):
    """A request as it came; its message is empty if there is a problem.

    Attributes:
        stream: Of the connection; the answer names it.
        path: ``/SERVICE/METHOD``.
        timeout: ``grpc-timeout``, empty if there is none.
        encoding: ``grpc-encoding``, empty if there is none.
        message: What the client has sent.
        compressed: Whether the message is compressed as ``encoding`` says.
        problem: A :class:`Problem`.
        begun_ns: When its headers came (ns of CLOCK_MONOTONIC).
    """

    stream: int
    path: bytes
    timeout: bytes
    encoding: bytes
    message: bytes
    compressed: bool
    problem: int
    begun_ns: int


class Connection(Protocol):
    """One client's connection. Calls never wait; all come from the same thread.

    What it keeps is bounded by its limits: ``streams`` requests with their messages and answers, one frame of at most
    1 MiB, and 16,384 short ones that wait to be sent. A message takes memory as it comes, up to twice what has come or
    1 MiB of address space; how much all connections hold together, how long a client may take, and one that never
    says anything are for whoever has the socket.

    Attributes:
        message_limit: Longest message that is taken (bytes); may be changed.
    """

    message_limit: int

    @property
    def held(self) -> int:
        """Bytes of messages that have not come whole."""
        ...

    @property
    def open_since_ns(self) -> int | None:
        """When the oldest request began that is not done (ns of CLOCK_MONOTONIC).

        It has not come whole, has not been answered, or the client has not taken all of its answer.
        """
        ...

    @property
    def idle(self) -> bool:
        """Whether no request is under way and nothing waits to be sent."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it has ended: close it."""
        ...

    def receive(self, descriptor: int, /) -> list[tuple[int, bytes, bytes, bytes, bytes, bool, int, int]] | None:
        """Take what has come, at most 256 KiB, and give the requests (:class:`Request`) that are whole now.

        A request with a problem is given as soon as the problem is seen; one that the client has given up meanwhile is
        not given.

        Returns:
            None if the client has hung up.

        Raises:
            OSError: Nothing came (BlockingIOError), or the connection is broken.
            ValueError: The client does not speak HTTP/2, or floods the connection; there is nothing to be said to it
                any more.
            MemoryError: There is no memory for the message; close it.
        """
        ...

    def answer(self, stream: int, message: bytes, /) -> None:
        """Answer a request; nothing happens if the client has given it up.

        Raises:
            RuntimeError: It is answered already, or has not been given by :meth:`receive`; so for the other answers.
            OverflowError: The message is longer than gRPC can say (4 GiB).
        """
        ...

    def fail(self, stream: int, status: int, text: str, /) -> None:
        """Answer a request by a gRPC status and a text, of which about 1,024 bytes are sent."""
        ...

    def refuse(self, stream: int, status: str, /) -> None:
        """Answer what is no gRPC by an HTTP status such as "415"."""
        ...

    def flush(self, descriptor: int, /) -> bool:
        """Send what can be sent; False if the client has to read first.

        Raises:
            OSError: The connection is broken.
        """
        ...

    def go_away(self) -> None:
        """Take no new requests; those under way go on (GOAWAY)."""
        ...


class NewConnection(Protocol):
    """Makes the server's side of a connection."""

    def __call__(self, *, streams: int, message_limit: int, header_limit: int) -> Connection:
        """See :class:`Connection`.

        Args:
            streams: Requests under way at the same time; more wait at the client.
            message_limit: Longest message that is taken (bytes).
            header_limit: Longest headers of a request, as RFC 9113 6.5.2 counts them (bytes).

        Raises:
            ValueError: A limit is negative, or there is no stream.
        """
        ...


class CompressionError(ValueError):
    """A message that is not compressed as it says, or in a way that is not known."""


#: Seconds of each unit of ``grpc-timeout``.
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
#: zlib's window for each encoding.
_WINDOWS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


def timeout_seconds(value: bytes) -> float | None:
    """``grpc-timeout``: at most eight digits and a unit; None for an empty one.

    Raises:
        ValueError: Anything else.
    """
    if not value:
        return None
    digits, unit = value[:-1], value[-1:]
    if not (1 <= len(digits) <= 8 and digits.isdigit() and unit in _UNITS):
        raise ValueError(f"grpc-timeout: expected up to 8 digits and one of H, M, S, m, u, n, got {value[:16]!r}")
    return int(digits) * _UNITS[unit]


def decompress(message: bytes, encoding: bytes, limit: int) -> bytes:
    """A message as it was before it was compressed.

    Raises:
        CompressionError: Another encoding, or other bytes than it makes, or bytes after them.
        OverflowError: It is longer than ``limit`` bytes.
    """
    window = _WINDOWS.get(encoding)
    if window is None:
        raise CompressionError(f"grpc-encoding: expected deflate or gzip, got {encoding[:32]!r}")
    stream = zlib.decompressobj(window)
    try:
        data = stream.decompress(message, limit + 1)
    except zlib.error as error:
        raise CompressionError(f"the message is not {encoding.decode()}: {error}") from error
    if len(data) > limit:
        raise OverflowError(f"the message is larger than {limit} bytes")
    if not stream.eof:
        raise CompressionError(f"the message is not {encoding.decode()}: it ends too early")
    if stream.unused_data:
        raise CompressionError(f"the message is not {encoding.decode()}: there is more after its end")
    return data


def _compiled() -> NewConnection | None:
    try:
        from skerry_agent.serving import _http2
    except ImportError:
        return None
    return cast("Callable[..., Connection]", _http2.Connection)


new_connection = _compiled()
COMPILED = new_connection is not None
