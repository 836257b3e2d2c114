"""Streams of an encoded update: bytes of a known length, in chunks, each raw or entropy coded, whichever is smaller.

Chunks bound the memory of a decoder and let a large stream change its statistics. A chunk is coded with zstd at its
quickest level, since quantised updates have skewed frequencies but hardly any repetition: Huffman codes find what there
is, but no symbol costs less than a bit. A short stream in which most bytes are alike goes through rANS instead
(:mod:`skerry_contract.delta_coding`), which is a hundred times slower and may be a third smaller.

Layout of a stream of n bytes, integers little-endian: for each chunk its coding (uint8) and its length (uint32), then
the chunks. A stream of no bytes is nothing at all.

Invariant: n is known to the reader from elsewhere; nothing larger than it is allocated.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import zstandard

from skerry_contract.delta_coding import Coding, decode_stream, encode_rans, lanes_for
from skerry_contract.errors import WireError

UInt8 = npt.NDArray[np.uint8]

#: Bytes of a stream in one chunk.
CHUNK = 1 << 18
#: Longest stream that rANS is used for (bytes).
RANS_BYTES = 1 << 16
#: Share of what zstd needs that rANS must save.
_RANS_WORTH = 1 / 8
_ENTRY = struct.Struct("<BI")
#: Share of a chunk that its coding must save, or it stays raw: reading costs time.
_WORTH = 1 / 64


def write_stream(data: UInt8, *, entropy: bool = True) -> list[bytes | memoryview]:
    """The pieces of a stream, to be joined.

    Args:
        data: uint8 [n].
        entropy: Whether coding is tried; without, the stream is as quick as a copy.
    """
    if not len(data):
        return []
    chunks = [data[start : start + CHUNK].data for start in range(0, len(data), CHUNK)]
    compressor = zstandard.ZstdCompressor(level=1)
    table = bytearray()
    pieces: list[bytes | memoryview] = []
    for chunk in chunks:
        coding: Coding = Coding.RAW
        piece: bytes | memoryview = chunk
        if entropy:
            form: tuple[Coding, bytes] = (Coding.ZSTD, compressor.compress(chunk))
            if len(data) <= RANS_BYTES and _rans_bytes(data) < len(form[1]) * (1 - _RANS_WORTH):
                form = (Coding.RANS, encode_rans(bytes(chunk)))
            if len(form[1]) < len(chunk) * (1 - _WORTH):
                coding, piece = form
        table += _ENTRY.pack(coding, len(piece))
        pieces.append(piece)
    return [bytes(table), *pieces]


def _rans_bytes(data: UInt8) -> float:
    """About what rANS needs: the order-0 entropy, the table and the states."""
    counts = np.bincount(data, minlength=1)
    shares = counts[counts > 0] / len(data)
    return float(-len(data) * (shares * np.log2(shares)).sum()) / 8 + 3 * len(shares) + 4 * lanes_for(len(data))


class Reader:
    """Takes an update apart from its front; everything that is missing is a WireError."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def take(self, count: int, field: str) -> memoryview:
        """The next ``count`` bytes."""
        if len(self._rest) < count:
            raise WireError(field, expected=f"{count} bytes", got=f"{len(self._rest)} bytes")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def finish(self) -> None:
        """Raise unless everything has been taken."""
        if len(self._rest):
            raise WireError("update", expected="its end", got=f"{len(self._rest)} bytes more")

    def stream(self, size: int, field: str) -> UInt8:
        """Read what :func:`write_stream` wrote.

        Args:
            size: Bytes that it must give; bounded by the caller.
            field: Name in errors.

        Returns:
            uint8 [size]; a view into the update where nothing was coded.
        """
        chunks = -(-size // CHUNK)
        entries = list(_ENTRY.iter_unpack(self.take(chunks * _ENTRY.size, field)))
        lengths = [min(CHUNK, size - index * CHUNK) for index in range(chunks)]
        if all(coding == Coding.RAW for coding, _ in entries):
            if [length for _, length in entries] != lengths:
                raise WireError(field, expected=f"{size} bytes in whole chunks", got="others")
            return np.frombuffer(self.take(size, field), dtype=np.uint8)
        # Before anything is allocated, the coded chunks must be there.
        coded = [self.take(length, field) for _, length in entries]
        out = np.empty(size, dtype=np.uint8)
        for index, ((coding, _), chunk, length) in enumerate(zip(entries, coded, lengths, strict=True)):
            if coding == Coding.RANS and size > RANS_BYTES:
                raise WireError(field, expected=f"rANS for at most {RANS_BYTES} bytes", got=size)
            if coding == Coding.ZSTD_BASE:
                raise WireError(field, expected="no dictionary", got=coding)
            out[index * CHUNK : index * CHUNK + length] = decode_stream(coding, chunk, length, field=field)
        return out
