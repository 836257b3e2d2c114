"""Deltas: how a file is made from another one that the device has.

A delta is a header, a table of segments and their streams. The segments are laid end to end:

========  =============================================================  =======
kind      bytes of the target                                            streams
========  =============================================================  =======
LITERAL   the stream                                                     1
COPY      bytes of the base                                              0
BYTES     bytes of the base plus the stream, modulo 256 (int8, uint8)    1
WORDS     32-bit words of the base plus a difference, modulo 2 ** 32     4
          (float32, int32), zigzag, one stream per byte of the word
========  =============================================================  =======

Layout, little-endian: the header (:data:`_HEADER`); the table, one zstd frame of the columns kind (uint8), length
(uint32), skip (int64) per segment and coding (uint8), size (uint32) per stream; the streams. A segment reads the base
at the end of what the segment before it read, plus ``skip``. A literal reads nothing, but its place in the base says
which bytes around it are its dictionary.

Invariants: counts and sizes are checked before memory is taken; memory beside delta and base is a few segments, of at
most :data:`SEGMENT_BYTES` each; the base's digest is checked first and the target's last. Nothing here knows ONNX:
which bytes are tensors is known by whoever writes deltas.

>>> from skerry_contract.delta_writer import write_delta
>>> apply(write_delta(b"an old text", b"a new text"), b"an old text")
b'a new text'
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_contract.delta_coding import Buffer, Bytes, compress, decode_stream, decompress
from skerry_contract.errors import WireError
from skerry_contract.limits import FILE_BYTES

MAGIC = b"SKDELTA\n"
VERSION = 1
#: Most bytes of the target that one segment makes; a multiple of 4.
SEGMENT_BYTES = 1 << 20
#: Most segments of a delta.
SEGMENTS = 32_768
#: How far around a literal's place the base is its dictionary (bytes).
REACH_BYTES = 512 << 10
#: magic, version, 0, segments, streams, bytes of the table, base size, target size, base SHA-256, target SHA-256.
_HEADER = struct.Struct("<8sHHIIIQQ32s32s")


class Kind(enum.IntEnum):
    """What a segment does."""

    LITERAL = 0
    COPY = 1
    BYTES = 2
    WORDS = 3


#: Streams of a segment by its kind.
STREAMS = {Kind.LITERAL: 1, Kind.COPY: 0, Kind.BYTES: 1, Kind.WORDS: 4}
_STREAMS = np.array([STREAMS[kind] for kind in Kind], dtype=np.int64)


@dataclass(frozen=True)
class Stream:
    """One stream: its coding and its place in the delta (bytes)."""

    coding: int
    start: int
    size: int


@dataclass(frozen=True)
class Segment:
    """One segment.

    Attributes:
        kind: What it does.
        length: Bytes of the target.
        base: Where it reads the base.
        streams: What it reads of the delta.
    """

    kind: Kind
    length: int
    base: int
    streams: tuple[Stream, ...]


@dataclass(frozen=True)
class DeltaHeader:
    """What a delta says of itself; digests are SHA-256, sizes bytes."""

    base_size: int
    target_size: int
    base_sha256: bytes
    target_sha256: bytes
    segments: int
    streams: int
    table_bytes: int


def read_header(delta: Buffer) -> DeltaHeader:
    """Read and check the header; raises WireError."""
    if len(delta) < _HEADER.size:
        raise WireError("delta", expected=f"at least {_HEADER.size} bytes", got=f"{len(delta)} bytes")
    magic, version, reserved, segments, streams, table_bytes, *rest = _HEADER.unpack_from(delta)
    base_size, target_size, base_sha256, target_sha256 = rest
    if magic != MAGIC or version != VERSION or reserved:
        raise WireError("delta.version", expected=f"{MAGIC!r} {VERSION}", got=f"{magic!r} {version} {reserved}")
    if segments > SEGMENTS:
        raise WireError("delta.segments", expected=f"at most {SEGMENTS}", got=segments)
    if streams > 4 * segments:
        raise WireError("delta.streams", expected=f"at most {4 * segments}", got=streams)
    for name, size in (("base_size", base_size), ("target_size", target_size)):
        if size > FILE_BYTES:
            raise WireError(f"delta.{name}", expected=f"at most {FILE_BYTES}", got=size)
    if table_bytes > len(delta) - _HEADER.size:
        raise WireError("delta.table_bytes", expected=f"at most {len(delta) - _HEADER.size}", got=table_bytes)
    return DeltaHeader(base_size, target_size, base_sha256, target_sha256, segments, streams, table_bytes)


def pack_delta(
    segments: list[tuple[Kind, int, int]], streams: list[tuple[int, bytes]], *, base: bytes, target: bytes
) -> bytes:
    """Put a delta together; the caller made sure that it gives ``target``.

    Args:
        segments: (kind, length, where it reads the base), in order of the target.
        streams: (coding, payload), in order.
        base: The whole base.
        target: The whole target.
    """
    ends = [0]
    for kind, length, start in segments:
        ends.append(start if kind is Kind.LITERAL else start + length)
    columns = (
        np.array([kind for kind, _, _ in segments], dtype=np.uint8),
        np.array([length for _, length, _ in segments], dtype="<u4"),
        np.array([start - end for (_, _, start), end in zip(segments, ends, strict=False)], dtype="<i8"),
        np.array([coding for coding, _ in streams], dtype=np.uint8),
        np.array([len(payload) for _, payload in streams], dtype="<u4"),
    )
    table = compress(b"".join(column.tobytes() for column in columns)) if segments else b""
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        0,
        len(segments),
        len(streams),
        len(table),
        len(base),
        len(target),
        hashlib.sha256(base).digest(),
        hashlib.sha256(target).digest(),
    )
    return b"".join((header, table, *(payload for _, payload in streams)))


def read_segments(delta: Buffer, header: DeltaHeader) -> list[Segment]:
    """Read and check the table: afterwards every segment lies inside base, target and delta.

    Raises:
        WireError: It does not fit the header, or reaches outside.
    """
    count, streams = header.segments, header.streams
    start = _HEADER.size + header.table_bytes
    view = memoryview(delta)
    size = 13 * count + 5 * streams
    table = decompress(view[_HEADER.size : start], size, field="delta.table") if count else b""
    # Sums are of int64: at most 32,768 lengths and 131,072 sizes below 2 ** 32 cannot overflow it.
    kinds = np.frombuffer(table, dtype=np.uint8, count=count)
    lengths = np.frombuffer(table, dtype="<u4", count=count, offset=count).astype(np.int64)
    skips = np.frombuffer(table, dtype="<i8", count=count, offset=5 * count)
    codings = np.frombuffer(table, dtype=np.uint8, count=streams, offset=13 * count)
    sizes = np.frombuffer(table, dtype="<u4", count=streams, offset=13 * count + streams).astype(np.int64)
    if count and int(kinds.max()) > max(Kind):
        raise WireError("delta.kind", expected=f"0 to {max(Kind)}", got=int(kinds.max()))
    if int(_STREAMS[kinds].sum()) != streams:
        raise WireError("delta.streams", expected=str(int(_STREAMS[kinds].sum())), got=streams)
    if count and (int(lengths.min()) < 1 or int(lengths.max()) > SEGMENT_BYTES):
        raise WireError("delta.length", expected=f"1 to {SEGMENT_BYTES}", got=f"{lengths.min()} to {lengths.max()}")
    if int(lengths.sum()) != header.target_size:
        raise WireError("delta.target_size", expected=str(int(lengths.sum())), got=header.target_size)
    if int(sizes.sum()) != len(delta) - start:
        raise WireError("delta", expected=f"streams of {int(sizes.sum())} bytes", got=f"{len(delta) - start}")
    return _place(header, kinds, lengths, skips, codings, sizes, start)


def _place(
    header: DeltaHeader,
    kinds: Bytes,
    lengths: npt.NDArray[np.int64],
    skips: npt.NDArray[np.int64],
    codings: Bytes,
    sizes: npt.NDArray[np.int64],
    start: int,
) -> list[Segment]:
    rows = zip(codings.tolist(), sizes.tolist(), strict=True)
    segments: list[Segment] = []
    position = 0
    for index, (number, length, skip) in enumerate(zip(kinds.tolist(), lengths.tolist(), skips.tolist(), strict=True)):
        kind = Kind(number)
        position += skip
        reads = 0 if kind is Kind.LITERAL else length
        if not 0 <= position <= header.base_size - reads:
            place = f"{position} to {position + reads}"
            raise WireError(f"delta.segments[{index}]", expected=f"inside 0 to {header.base_size}", got=place)
        if kind is Kind.WORDS and length % 4:
            raise WireError(f"delta.segments[{index}].length", expected="a multiple of 4", got=length)
        own = []
        for _ in range(STREAMS[kind]):
            coding, size = next(rows)
            own.append(Stream(coding, start, size))
            start += size
        segments.append(Segment(kind, length, position, tuple(own)))
        position += reads
    return segments


def pieces(delta: Buffer, base: Buffer) -> Iterator[bytes]:
    """The target in pieces of at most :data:`SEGMENT_BYTES`; only a run to the end is the target.

    Args:
        delta: From the wire, not trusted.
        base: The whole file that it applies to; a memory map will do.

    Raises:
        WireError: Another base than the delta was made for, a delta that is damaged anywhere, or a result that is not
            the target; pieces that came before it are to be thrown away.
    """
    header = read_header(delta)
    if len(base) != header.base_size or hashlib.sha256(base).digest() != header.base_sha256:
        raise WireError("delta.base", expected=f"SHA-256 {header.base_sha256.hex()}", got=f"{len(base)} other bytes")
    whole = hashlib.sha256()
    sources = memoryview(delta), memoryview(base)
    for index, segment in enumerate(read_segments(delta, header)):
        piece = _make(segment, *sources, field=f"delta.segments[{index}]")
        whole.update(piece)
        yield piece
    if whole.digest() != header.target_sha256:
        raise WireError("delta.target", expected=f"SHA-256 {header.target_sha256.hex()}", got=whole.hexdigest())


def apply(delta: Buffer, base: Buffer, *, limit: int = 64 << 20) -> bytes:
    """Make the target in memory.

    Args:
        delta: From the wire, not trusted.
        base: The whole base.
        limit: Largest target that is accepted (bytes).

    Raises:
        WireError: As :func:`pieces`, or a target above ``limit``.
    """
    size = read_header(delta).target_size
    if size > limit:
        raise WireError("delta.target_size", expected=f"at most {limit}", got=size)
    return b"".join(pieces(delta, base))


def _make(segment: Segment, delta: memoryview, base: memoryview, *, field: str) -> bytes:
    source = base[segment.base : segment.base + segment.length]
    if segment.kind is Kind.COPY:
        return bytes(source)

    def stream(number: int, size: int) -> Bytes:
        found = segment.streams[number]
        payload = delta[found.start : found.start + found.size]
        name = f"{field}.streams[{number}]"
        around = segment.base, segment.length
        return decode_stream(found.coding, payload, size, field=name, dictionary=lambda: surroundings(base, *around))

    if segment.kind is Kind.LITERAL:
        return stream(0, segment.length).tobytes()
    if segment.kind is Kind.BYTES:
        return (np.frombuffer(source, dtype=np.uint8) + stream(0, segment.length)).tobytes()
    planes = np.empty((segment.length // 4, 4), dtype=np.uint8)
    for number in range(4):
        planes[:, number] = stream(number, segment.length // 4)
    return (np.frombuffer(source, dtype="<u4") + unfold(planes)).tobytes()


def surroundings(base: Buffer, start: int, length: int) -> bytes:
    """The bytes of the base that are the dictionary of a literal at ``start``."""
    return bytes(base[max(0, start - REACH_BYTES) : start + length + REACH_BYTES])


def difference_planes(base: Buffer, target: Buffer) -> list[bytes]:
    """The four streams of a WORDS segment, lowest byte first."""
    difference = np.frombuffer(target, dtype="<u4") - np.frombuffer(base, dtype="<u4")
    folded = (difference << np.uint32(1)) ^ (np.uint32(0) - (difference >> np.uint32(31)))
    planes = folded.astype("<u4").view(np.uint8).reshape(-1, 4)
    return [planes[:, number].tobytes() for number in range(4)]


def unfold(planes: Bytes) -> npt.NDArray[np.uint32]:
    """Differences from their planes, uint8 [N, 4] -> uint32 [N]: undoes the zigzag 0, -1, 1, -2, … of 0, 1, 2, 3, …"""
    folded = planes.reshape(-1).view("<u4").astype(np.uint32)
    return (folded >> np.uint32(1)) ^ (np.uint32(0) - (folded & np.uint32(1)))
