"""The shared-memory door on the wire: what both sides write into the socket and into the slots (pure; no I/O).

``docs/shared-memory.md`` has the same tables for people, ``edge_agent/include/skerry.h`` for C. Everything is little
endian and aligned to its size. Invariants: the server alone decides where things lie, so no offset ever comes from a
client; a header is copied out of shared memory once and only the copy is believed.
"""

from __future__ import annotations

import enum
import functools
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

from skerry_agent.engine.errors import SchemaError

MAGIC = b"SKRY"
VERSION = 1

#: Bounds of one client: slots, and rows of one request (the largest batch of any release).
SLOTS = 8
ROWS = 64
#: Longest request id and names (bytes of UTF-8).
ID_BYTES = 128
NAME_BYTES = 64
ERROR_BYTES = 480
RANK = 8

REQUEST_BYTES = 192
ANSWER_BYTES = 768
#: Where the tensors of a slot begin.
INPUT_OFFSET = 1024
#: Largest message on the socket.
MESSAGE_BYTES = 1024

_ALIGN = 64
_PAGE = 4096

HEAD = struct.Struct("<HHI")
_HELLO = struct.Struct("<HHI4sHHI")
_WELCOME = struct.Struct("<HHI4sHHIIIIIIQQQQQQff8I64s64s64s")
_REFUSED = struct.Struct("<HHI4sHHI480s")
_REQUEST = struct.Struct("<IIQQQ128s")
_ANSWER = struct.Struct("<IIdI12x128s64s64s")
_ERROR = struct.Struct("<480s")


class LayoutError(ValueError):
    """Bytes that no side of this version writes."""


class Kind(enum.IntEnum):
    """First field of every message on the socket."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    RING = 4
    DONE = 5


class Status(enum.IntEnum):
    """What became of a request, or of a connection."""

    OK = 0
    INVALID = 1
    NO_RELEASE = 2
    DEADLINE = 3
    OVERLOADED = 4
    FAILED = 5
    MODEL_CHANGED = 6
    PROTOCOL = 7
    FORBIDDEN = 8


@dataclass(frozen=True)
class Hello:
    """What a client asks for.

    Attributes:
        slots: Requests that it wants to have under way at the same time, 1 to :data:`SLOTS`.
        rows: Most rows of one request, 1 to :data:`ROWS`.
    """

    slots: int
    rows: int


@dataclass(frozen=True)
class Geometry:
    """What lies where in the memory of one client, which follows from the model and what the client asked for.

    Attributes:
        slots: Number of slots.
        rows: Most rows of one request.
        shape: Of one row of input.
        classes: Scores of one row.
        features: Drift features of one row.
        names_bytes: Size of the class names at the start of the memory: UTF-8, each followed by a zero byte.
    """

    slots: int
    rows: int
    shape: tuple[int, ...]
    classes: int
    features: int
    names_bytes: int

    @functools.cached_property
    def row_bytes(self) -> int:
        """One row of input."""
        return 4 * math.prod(self.shape)

    @property
    def first_slot(self) -> int:
        """Offset of slot 0 in the memory."""
        return _round_up(self.names_bytes, _PAGE)

    @property
    def scores_offset(self) -> int:
        """Offset of the scores in a slot."""
        return _round_up(INPUT_OFFSET + self.rows * self.row_bytes, _ALIGN)

    @property
    def features_offset(self) -> int:
        """Offset of the features in a slot."""
        return _round_up(self.scores_offset + self.rows * self.classes * 4, _ALIGN)

    @property
    def slot_bytes(self) -> int:
        """Size of a slot."""
        return _round_up(self.features_offset + self.rows * self.features * 4, _PAGE)

    @property
    def region_bytes(self) -> int:
        """Size of the memory."""
        return self.first_slot + self.slots * self.slot_bytes

    def slot_offset(self, slot: int) -> int:
        """Offset of a slot in the memory."""
        return self.first_slot + slot * self.slot_bytes


@dataclass(frozen=True)
class Welcome:
    """What a client is given, beside the descriptor of the memory.

    Attributes:
        geometry: What lies where.
        minimum, maximum: Range of input values.
        task: Name of the model.
        release_id: Release that is active now; each answer names the one that gave it.
        input_name: Name of the input, for messages.
    """

    geometry: Geometry
    minimum: float
    maximum: float
    task: str
    release_id: str
    input_name: str


class RequestHeader(NamedTuple):
    """First part of a slot, written by the client.

    Attributes:
        rows: Rows of input.
        input_bytes: Bytes of input.
        deadline_ns: Moment on CLOCK_MONOTONIC after which the answer is of no use (ns); 0: none.
        request_id: Repeated in the answer; empty asks for a generated one.
    """

    rows: int
    input_bytes: int
    deadline_ns: int
    request_id: str


class AnswerHeader(NamedTuple):
    """Second part of a slot, written by the server.

    Attributes:
        status: What became of the request; everything but the error is only there if it is OK.
        rows: Rows of scores and features.
        latency_us: Time that the engine took.
        rung: Place of the network on the release's ladder.
        request_id: As given, or generated.
        release_id: Release that answered.
        variant: Served form.
        error: Why not.
    """

    status: int
    rows: int = 0
    latency_us: float = 0.0
    rung: int = 0
    request_id: str = ""
    release_id: str = ""
    variant: str = ""
    error: str = ""


def encode_hello(hello: Hello) -> bytes:
    """The first message of a client."""
    return _HELLO.pack(Kind.HELLO, 0, 0, MAGIC, VERSION, hello.slots, hello.rows)


def decode_hello(data: bytes) -> Hello:
    """Read it; raises LayoutError."""
    if len(data) != _HELLO.size:
        raise LayoutError(f"hello: expected {_HELLO.size} bytes, got {len(data)}")
    kind, _, _, magic, version, slots, rows = _HELLO.unpack(data)
    if kind != Kind.HELLO or magic != MAGIC:
        raise LayoutError("hello: expected the magic SKRY, got other bytes")
    if version != VERSION:
        raise LayoutError(f"version: expected {VERSION}, got {version}")
    if not 1 <= slots <= SLOTS:
        raise LayoutError(f"slots: expected 1 to {SLOTS}, got {slots}")
    if not 1 <= rows <= ROWS:
        raise LayoutError(f"rows: expected 1 to {ROWS}, got {rows}")
    return Hello(slots, rows)


def encode_welcome(welcome: Welcome) -> bytes:
    """The server's consent; the memory's descriptor goes with it."""
    g = welcome.geometry
    return _WELCOME.pack(
        Kind.WELCOME,
        0,
        0,
        MAGIC,
        VERSION,
        g.slots,
        g.rows,
        len(g.shape),
        g.classes,
        g.features,
        g.names_bytes,
        0,
        g.region_bytes,
        g.first_slot,
        g.slot_bytes,
        INPUT_OFFSET,
        g.scores_offset,
        g.features_offset,
        welcome.minimum,
        welcome.maximum,
        *(*g.shape, *[0] * (RANK - len(g.shape))),
        welcome.task.encode(),
        welcome.release_id.encode(),
        cut_text(welcome.input_name, NAME_BYTES),
    )


def decode_welcome(data: bytes) -> Welcome:
    """Read it; raises LayoutError, also if the layout is another one than this version's."""
    if len(data) != _WELCOME.size:
        raise LayoutError(f"welcome: expected {_WELCOME.size} bytes, got {len(data)}")
    fields = _WELCOME.unpack(data)
    slots, rows, rank, classes, features, names_bytes = fields[5:11]
    if fields[3] != MAGIC or fields[4] != VERSION or not 1 <= rank <= RANK:
        raise LayoutError(f"version: expected {VERSION}, got {fields[4]}")
    minimum, maximum = fields[18:20]
    geometry = Geometry(slots, rows, tuple(fields[20 : 20 + rank]), classes, features, names_bytes)
    told = (
        *(geometry.region_bytes, geometry.first_slot, geometry.slot_bytes),
        *(INPUT_OFFSET, geometry.scores_offset, geometry.features_offset),
    )
    if fields[12:18] != told:
        raise LayoutError(f"layout: expected {told}, got {fields[12:18]}")
    task, release_id, input_name = (text(field) for field in fields[28:31])
    return Welcome(geometry, minimum, maximum, task, release_id, input_name)


def encode_refused(status: Status, error: str) -> bytes:
    """The server's last message before it closes a connection."""
    return _REFUSED.pack(Kind.REFUSED, 0, 0, MAGIC, VERSION, status, 0, cut_text(error, ERROR_BYTES))


def decode_refused(data: bytes) -> tuple[int, str]:
    """Status and text; raises LayoutError."""
    if len(data) != _REFUSED.size:
        raise LayoutError(f"refusal: expected {_REFUSED.size} bytes, got {len(data)}")
    fields = _REFUSED.unpack(data)
    return fields[5], text(fields[7])


def write_request(memory: memoryview, offset: int, header: RequestHeader) -> None:
    """Write the request header; what follows it up to :data:`REQUEST_BYTES` is not read."""
    request_id = header.request_id.encode()
    _REQUEST.pack_into(
        memory, offset, header.rows, len(request_id), header.input_bytes, header.deadline_ns, 0, request_id
    )


def read_request(memory: memoryview, offset: int) -> RequestHeader:
    """A copy of the request header, each field read once; raises SchemaError for an id that is none."""
    rows, id_bytes, input_bytes, deadline_ns, _, raw = _REQUEST.unpack_from(memory, offset)
    if not id_bytes:
        return RequestHeader(rows, input_bytes, deadline_ns, "")
    if id_bytes > ID_BYTES:
        raise SchemaError("id_bytes", expected=f"at most {ID_BYTES}", got=id_bytes)
    try:
        request_id = raw[:id_bytes].decode()
    except UnicodeDecodeError as error:
        raise SchemaError("id", expected="UTF-8", got=str(error)) from error
    if "\0" in request_id:
        raise SchemaError("id", expected="text without zeros", got=repr(request_id))
    return RequestHeader(rows, input_bytes, deadline_ns, request_id)


def write_answer(memory: memoryview, offset: int, header: AnswerHeader) -> None:
    """Write the answer header; the text of an error only if there is one."""
    status, rows, latency_us, rung, request_id, release_id, variant, error = header
    _ANSWER.pack_into(
        memory,
        offset,
        status,
        rows,
        latency_us,
        rung,
        request_id.encode(),
        _name_bytes(release_id),
        _name_bytes(variant),
    )
    if error:
        _ERROR.pack_into(memory, offset + _ANSWER.size, cut_text(error, ERROR_BYTES))


def read_answer(memory: memoryview, offset: int) -> AnswerHeader:
    """A copy of the answer header."""
    status, rows, latency_us, rung, request_id, release_id, variant = _ANSWER.unpack_from(memory, offset)
    error = text(_ERROR.unpack_from(memory, offset + _ANSWER.size)[0]) if status else ""
    return AnswerHeader(status, rows, latency_us, rung, text(request_id), _name(release_id), _name(variant), error)


@functools.lru_cache(maxsize=64)
def _name_bytes(value: str) -> bytes:
    """Names repeat from request to request."""
    return cut_text(value, NAME_BYTES)


@functools.lru_cache(maxsize=64)
def _name(field: bytes) -> str:
    return text(field)


def text(field: bytes) -> str:
    """A text field without the zeros that fill it."""
    return field.split(b"\0", 1)[0].decode(errors="replace")


def cut_text(value: str, size: int) -> bytes:
    """UTF-8 of at most ``size - 1`` bytes, cut between characters, so that a zero ends it."""
    data = value.encode(errors="replace")
    return data if len(data) < size else data[: size - 1].decode(errors="ignore").encode()


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
