"""A client of HTTP/2 for tests: frames made by hand, so that they can be wrong.

HPACK is written as literals; what the server writes is read by nghttp2's own decoder, which is where the server is.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from skerry_agent.serving import http2
from skerry_agent.serving.http2 import Request

Fields = tuple[tuple[bytes, bytes], ...]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8


class Type(IntEnum):
    """Of a frame (RFC 9113, 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """RFC 9113, 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9


class Frame(NamedTuple):
    """A frame that came; ``fields`` are those of a HEADERS frame."""

    type: int
    flags: int
    stream: int
    payload: bytes
    fields: Fields = ()

    @property
    def code(self) -> int:
        """Of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.type == Type.GOAWAY else self.payload[:4], "big")


# ---- what a client writes ----


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """HPACK's integer with a prefix of so many bits (RFC 7541, 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out, value = [first | limit], value - limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """A field without Huffman code; ``indexed`` puts it into the dynamic table."""
    texts = (integer(len(text), 7) + text for text in (name, value))
    return bytes([0x40 if indexed else 0x00]) + b"".join(texts)


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block."""
    return b"".join(literal(name, value) for name, value in fields)


def fields_of(path: bytes = b"/s/m", *more: tuple[bytes, bytes], method: bytes = b"POST") -> Fields:
    """Those of a request over gRPC."""
    first = ((b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"edge"))
    return (*first, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more)


def headers(stream: int, fields: Iterable[tuple[bytes, bytes]] = (), flags: int = END_HEADERS) -> bytes:
    """HEADERS; those of a plain request if there are no fields."""
    return frame(Type.HEADERS, flags, stream, block(fields or fields_of()))


def data(stream: int, payload: bytes, *, end: bool = True) -> bytes:
    """DATA."""
    return frame(Type.DATA, END_STREAM if end else 0, stream, payload)


def message(payload: bytes, compressed: int = 0) -> bytes:
    """A message with gRPC's prefix."""
    return struct.pack(">BI", compressed, len(payload)) + payload


def request(stream: int, payload: bytes = b"ask", *more: tuple[bytes, bytes]) -> bytes:
    """A whole request."""
    return headers(stream, fields_of(b"/s/m", *more)) + data(stream, message(payload))


def settings(**values: int) -> bytes:
    """SETTINGS by the names of :class:`Setting`."""
    return frame(Type.SETTINGS, 0, 0, b"".join(struct.pack(">HI", Setting[name], v) for name, v in values.items()))


def window(stream: int, more: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(Type.WINDOW_UPDATE, 0, stream, struct.pack(">I", more))


def reset(stream: int, code: int = Code.CANCEL) -> bytes:
    """RST_STREAM."""
    return frame(Type.RST_STREAM, 0, stream, struct.pack(">I", code))


SETTINGS_ACK = frame(Type.SETTINGS, ACK, 0)
PING = frame(Type.PING, 0, 0, b"01234567")


# ---- what a client reads ----


class _Field(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("name_size", ctypes.c_size_t),
        ("value_size", ctypes.c_size_t),
        ("flags", ctypes.c_uint8),
    ]


class Inflater:
    """HPACK's decoder."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("nghttp2") or "libnghttp2.so.14")
        self._library.nghttp2_hd_inflate_hd2.restype = ctypes.c_ssize_t
        self._state = ctypes.c_void_p()
        assert self._library.nghttp2_hd_inflate_new(ctypes.byref(self._state)) == 0

    def __call__(self, payload: bytes) -> Fields:
        """The fields of a whole block."""
        fields: list[tuple[bytes, bytes]] = []
        field, flags = _Field(), ctypes.c_int()
        while True:
            used = self._library.nghttp2_hd_inflate_hd2(
                self._state,
                ctypes.byref(field),
                ctypes.byref(flags),
                ctypes.c_char_p(payload),
                ctypes.c_size_t(len(payload)),
                1,
            )
            assert used >= 0
            payload = payload[used:]
            if flags.value & 2:
                name = ctypes.string_at(field.name or 0, field.name_size) if field.name_size else b""
                value = ctypes.string_at(field.value or 0, field.value_size) if field.value_size else b""
                fields.append((name, value))
            if flags.value & 1:
                self._library.nghttp2_hd_inflate_end_headers(self._state)
                return tuple(fields)

    def close(self) -> None:
        """Free it."""
        self._library.nghttp2_hd_inflate_del(self._state)


class Client:
    """Both ends of a connection, of which none waits for the other.

    Attributes:
        connection: The server's side.
        socket: The client's end.
        server: The server's end.
    """

    def __init__(
        self, *, streams: int = 8, message_limit: int = 1 << 20, header_limit: int = 4096, hello: bytes | None = None
    ) -> None:
        assert http2.new_connection is not None
        self.server, self.socket = socket.socketpair()
        self.server.setblocking(False)
        self.socket.setblocking(False)
        self.connection = http2.new_connection(streams=streams, message_limit=message_limit, header_limit=header_limit)
        self._inflate = Inflater()
        self._rest = b""
        self.say(PREFACE + settings() + SETTINGS_ACK if hello is None else hello)
        if hello is None:
            self.hear()

    def take(self) -> list[Request]:
        """What the server finds in what has come."""
        requests: list[Request] = []
        while True:
            try:
                some = self.connection.receive(self.server.fileno())
            except BlockingIOError:
                return requests
            assert some is not None
            requests += map(Request._make, some)

    def say(self, *parts: bytes) -> list[Request]:
        """Send something; the requests that the server finds in it."""
        requests: list[Request] = []
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self.socket.send(view) :]
                requests += self.take()
        return requests

    def hear(self) -> list[Frame]:
        """All that the server has to say."""
        frames: list[Frame] = []
        done = False
        while not done:
            done = self.connection.flush(self.server.fileno())
            frames += self.read()
        return frames

    def read(self) -> list[Frame]:
        """What the server has said."""
        while True:
            try:
                part = self.socket.recv(1 << 20)
            except BlockingIOError:
                break
            assert part
            self._rest += part
        frames: list[Frame] = []
        at = 0
        while len(self._rest) - at >= 9:
            size = int.from_bytes(self._rest[at : at + 3], "big")
            if len(self._rest) - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._rest, at + 3)
            payload = self._rest[at + 9 : at + 9 + size]
            frames.append(Frame(kind, flags, stream, payload, self._inflate(payload) if kind == Type.HEADERS else ()))
            at += 9 + size
        self._rest = self._rest[at:]
        return frames

    def close(self) -> None:
        """Close both ends."""
        self._inflate.close()
        self.server.close()
        self.socket.close()


def body(frames: Iterable[Frame], stream: int) -> bytes:
    """What the DATA frames of a stream carry."""
    return b"".join(one.payload for one in frames if one.type == Type.DATA and one.stream == stream)


def of(frames: Iterable[Frame], kind: int) -> list[Frame]:
    """The frames of one type."""
    return [one for one in frames if one.type == kind]


def ended(frames: list[Frame], kind: Type = Type.GOAWAY) -> Code:
    """Why the server has ended the connection, or a stream."""
    (one,) = of(frames, kind)
    return Code(one.code)
