"""Chunks of streams: each raw or coded, whichever is smaller, and never larger than the reader knows."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard

from skerry_contract.delta_coding import Coding
from skerry_contract.errors import WireError
from skerry_contract.update_streams import CHUNK, RANS_BYTES, Reader, UInt8, write_stream


def codes(size: int, deviation: float) -> UInt8:
    return np.round(np.random.default_rng(1).normal(0, deviation, size)).astype(np.int8).view(np.uint8)


def entry(coding: int, length: int) -> bytes:
    return struct.pack("<BI", coding, length)


@pytest.mark.parametrize(
    ("data", "codings"),
    [
        (codes(0, 1), []),
        (codes(3, 50), [Coding.RAW]),
        (np.random.default_rng(0).integers(0, 256, CHUNK + 5, dtype=np.uint8), [Coding.RAW, Coding.RAW]),
        (codes(CHUNK, 20), [Coding.ZSTD]),
        (codes(RANS_BYTES, 0.3), [Coding.RANS]),
        (codes(RANS_BYTES + 1, 0.3), [Coding.ZSTD]),
        (np.concatenate([np.arange(CHUNK, dtype=np.uint8), codes(9, 50)]), [Coding.ZSTD, Coding.RAW]),
    ],
)
def test_each_chunk_is_as_small_as_it_can_be(data: UInt8, codings: list[Coding]) -> None:
    written = b"".join(write_stream(data))
    assert [coding for coding, _ in struct.iter_unpack("<BI", written[: 5 * len(codings)])] == codings
    assert len(written) <= len(data) + 5 * len(codings)
    plain = b"".join(write_stream(data, entropy=False))
    assert len(plain) == len(data) + 5 * len(codings)
    for form in (written, plain):
        reader = Reader(form)
        assert reader.stream(len(data), "x").tobytes() == data.tobytes()
        reader.finish()


def test_raw_chunks_are_not_copied() -> None:
    data = b"".join(write_stream(codes(CHUNK + 100, 50), entropy=False))
    assert np.shares_memory(Reader(data).stream(CHUNK + 100, "x"), np.frombuffer(data, dtype=np.uint8))


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (b"", 1),
        (entry(0, 1), 1),
        (entry(0, 2) + b"ab", 1),
        (entry(0, CHUNK - 1) + entry(0, 2) + bytes(CHUNK + 1), CHUNK + 1),
        (entry(9, 1) + b"a", 1),
        (entry(Coding.ZSTD_BASE, 1) + b"a", 1),
        (entry(Coding.ZSTD, 4) + b"abcd", 9),
        (entry(Coding.ZSTD, 1 << 31), 9),
        (entry(Coding.RANS, 4) + b"abcd", RANS_BYTES + 1),
    ],
)
def test_damage_is_refused(stream: bytes, size: int) -> None:
    with pytest.raises(WireError, match="x"):
        Reader(stream).stream(size, "x")


def test_a_frame_that_promises_more_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="a frame of 100 bytes"):
            Reader(entry(Coding.ZSTD, len(bomb)) + bomb).stream(100, "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
