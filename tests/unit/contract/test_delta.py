"""The delta format: round trips, damage of every kind, bounds on what a hostile delta can ask for."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.delta import (
    REACH_BYTES,
    SEGMENT_BYTES,
    SEGMENTS,
    Kind,
    apply,
    difference_planes,
    pack_delta,
    pieces,
    read_header,
    read_segments,
    unfold,
)
from skerry_contract.delta_coding import Coding, compress, decode_stream
from skerry_contract.delta_writer import Match, write_delta
from skerry_contract.errors import WireError

RNG = np.random.default_rng(7)
BASE = RNG.integers(0, 256, 5_000, dtype=np.uint8).tobytes()
HEADER = struct.Struct("<8sHHIIIQQ32s32s")


def moved(base: bytes, start: int, stop: int, largest: int = 2) -> bytes:
    """``base`` with small differences between two places, as a training round makes them."""
    values = np.frombuffer(base, dtype=np.uint8).copy()
    values[start:stop] += RNG.integers(-largest, largest + 1, stop - start).astype(np.uint8)
    return values.tobytes()


TARGET = moved(BASE, 500, 4_500)
DELTA = write_delta(BASE, TARGET, [Match(500, 500, 4_000, 1)])
#: A small one with every kind of segment, for the tests that damage it.
SMALL_BASE = BASE[:700]
SMALL_TARGET = moved(BASE, 100, 400)[:400] + b"else" + moved(BASE, 400, 600, 1)[400:700] + b"at the end"
SMALL = write_delta(SMALL_BASE, SMALL_TARGET, [Match(100, 100, 300, 1), Match(404, 400, 200, 4)])


def kinds(delta: bytes) -> list[Kind]:
    return [segment.kind for segment in read_segments(delta, read_header(delta))]


def test_a_tensor_that_moved_little_costs_little() -> None:
    assert apply(DELTA, BASE) == TARGET
    assert kinds(DELTA) == [Kind.COPY, Kind.BYTES, Kind.COPY]
    # Five values, equally often: log2(5) bits each, 1,161 bytes for 4,000 of them.
    assert 1_161 * 0.98 < len(DELTA) < 1_161 * 1.04 + 200
    # Without knowing where the tensor is, there is nothing to gain: the bytes are noise.
    assert len(write_delta(BASE, TARGET)) > 3_900


def test_subtraction_is_modulo_256_and_modulo_2_to_the_32() -> None:
    base = bytes([0, 255, 128, 1]) * 64
    target = bytes([255, 0, 127, 2]) * 64
    delta = write_delta(base, target, [Match(0, 0, 256, 1)])
    assert apply(delta, base) == target
    words = np.array([0, 2**32 - 1, 2**31, 7] * 100, dtype="<u4")
    after = (words + np.array([2**32 - 1, 1, 1, 2**31] * 100, dtype="<u4")).astype("<u4")
    assert (
        unfold(
            np.frombuffer(b"".join(difference_planes(words.tobytes(), after.tobytes())), dtype=np.uint8)
            .reshape(4, -1)
            .T.copy()
        ).tolist()
        == [2**32 - 1, 1, 1, 2**31] * 100
    )
    delta = write_delta(words.tobytes(), after.tobytes(), [Match(0, 0, words.nbytes, 4)])
    assert apply(delta, words.tobytes()) == after.tobytes()


def test_the_zigzag_of_words_by_hand() -> None:
    base = np.zeros(5, dtype="<u4")
    target = np.array([0, 1, 2**32 - 1, 2, 2**32 - 2], dtype="<u4")  # 0, 1, -1, 2, -2
    planes = difference_planes(base.tobytes(), target.tobytes())
    assert planes == [bytes([0, 2, 1, 4, 3]), bytes(5), bytes(5), bytes(5)]


def test_floats_that_move_little_lose_their_upper_bytes() -> None:
    old = RNG.normal(0, 0.1, 10_000).astype("<f4")
    new = (old * (1 + RNG.normal(0, 1e-4, 10_000))).astype("<f4")
    delta = write_delta(old.tobytes(), new.tobytes(), [Match(0, 0, old.nbytes, 4)])
    assert kinds(delta) == [Kind.WORDS]
    assert apply(delta, old.tobytes()) == new.tobytes()
    assert len(delta) < 0.5 * new.nbytes


def test_a_file_without_tensors_is_written_against_its_base() -> None:
    base = b"".join(b"line %d of a model card\n" % number for number in range(200))
    target = base.replace(b"line 100 of", b"row one hundred of") + b"the end\n"
    delta = write_delta(base, target)
    assert apply(delta, base) == target
    assert len(delta) < 250


@pytest.mark.parametrize(("base", "target"), [(b"", b""), (b"", b"abc"), (b"abc", b""), (b"abc", b"abc"), (b"a", b"b")])
def test_small_files(base: bytes, target: bytes) -> None:
    assert apply(write_delta(base, target), base) == target


def test_long_tensors_and_long_copies_are_cut_into_segments() -> None:
    base = bytes(SEGMENT_BYTES) + RNG.integers(0, 256, SEGMENT_BYTES + 8, dtype=np.uint8).tobytes() + b"x" * 10
    target = base[:SEGMENT_BYTES] + moved(base[SEGMENT_BYTES : 2 * SEGMENT_BYTES + 8], 0, 100) + b"y" * 10
    delta = write_delta(base, target, [Match(SEGMENT_BYTES, SEGMENT_BYTES, SEGMENT_BYTES + 8, 4)])
    assert b"".join(pieces(delta, base)) == target
    assert max(segment.length for segment in read_segments(delta, read_header(delta))) == SEGMENT_BYTES


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, bytes, list[Match]]:
    """Two files that share some tensors, at other places and with other values, between other bytes."""
    base, target, matches = bytearray(draw(st.binary(max_size=60))), bytearray(draw(st.binary(max_size=60))), []
    for _ in range(draw(st.integers(0, 4))):
        width = draw(st.sampled_from([1, 4]))
        old = draw(st.binary(max_size=40))
        old = old[: len(old) // width * width]
        new = bytes((value + draw(st.integers(0, 3))) % 256 for value in old)
        matches.append(Match(len(target), len(base), len(old), width))
        base += old + draw(st.binary(max_size=50))
        target += new + draw(st.sampled_from([bytes(base[-50:]), b"", b"other"]))
    return bytes(base), bytes(target), matches


@given(cases())
@settings(max_examples=120, deadline=None)
def test_any_files_and_any_matches_come_back(case: tuple[bytes, bytes, list[Match]]) -> None:
    base, target, matches = case
    assert apply(write_delta(base, target, matches), base) == target


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_a_mutated_delta_is_refused_or_gives_the_target(data: st.DataObject) -> None:
    delta = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(delta) - 1) | st.integers(0, HEADER.size + 60))
        delta[position] ^= data.draw(st.integers(1, 255))
    try:
        result = apply(bytes(delta), SMALL_BASE)
    except WireError:
        return
    assert result == SMALL_TARGET


def test_a_truncated_delta_is_refused() -> None:
    for length in range(0, len(SMALL), 7):
        with pytest.raises(WireError):
            apply(SMALL[:length], SMALL_BASE)


def test_a_longer_delta_is_refused() -> None:
    with pytest.raises(WireError, match="streams of"):
        apply(DELTA + b"x", BASE)


@pytest.mark.parametrize("base", [b"", BASE[:-1], BASE + b"x", moved(BASE, 0, 1, 100)[:1] + BASE[1:-1] + b"\0"])
def test_another_base_is_refused_before_anything_is_made(base: bytes) -> None:
    with pytest.raises(WireError, match=r"delta\.base"):
        next(pieces(DELTA, base))


def test_a_result_above_the_limit_is_refused() -> None:
    with pytest.raises(WireError, match="target_size"):
        apply(DELTA, BASE, limit=len(TARGET) - 1)


def forged(segments: list[tuple[Kind, int, int]], streams: list[tuple[int, bytes]], *, base: bytes, size: int) -> bytes:
    """A delta whose header and digests agree with each other, made by somebody who means harm."""
    packed = bytearray(pack_delta(segments, streams, base=base, target=b""))
    fields = list(HEADER.unpack_from(packed))
    fields[7] = size
    packed[: HEADER.size] = HEADER.pack(*fields)
    return bytes(packed)


BOMB = zstandard.ZstdCompressor().compress(bytes(256 << 20))


@pytest.mark.parametrize(
    ("segments", "streams", "size", "field"),
    [
        ([(Kind.COPY, 10, 4_991)], [], 10, r"segments\[0\]"),
        ([(Kind.COPY, 10, -1)], [], 10, r"segments\[0\]"),
        ([(Kind.LITERAL, 10, 5_001)], [(Coding.RAW, bytes(10))], 10, r"segments\[0\]"),
        ([(Kind.WORDS, 6, 0)], [(Coding.RAW, bytes(1))] * 4, 6, "length"),
        ([(Kind.LITERAL, SEGMENT_BYTES + 1, 0)], [(Coding.ZSTD, BOMB)], SEGMENT_BYTES + 1, "length"),
        ([(Kind.LITERAL, SEGMENT_BYTES, 0)], [(Coding.ZSTD, BOMB)], SEGMENT_BYTES, "frame"),
        ([(Kind.LITERAL, 4, 0)], [(9, bytes(4))], 4, "coding"),
        ([(Kind.LITERAL, 4, 0)], [(Coding.RAW, bytes(5))], 4, "4 bytes"),
        ([(Kind.COPY, 10, 0)], [], 11, "target_size"),
        ([(Kind.LITERAL, 4, 0)], [], 4, "streams"),
    ],
)
def test_a_forged_delta_is_refused_in_little_memory(
    segments: list[tuple[Kind, int, int]], streams: list[tuple[int, bytes]], size: int, field: str
) -> None:
    delta = forged(segments, streams, base=BASE, size=size)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=field):
            apply(delta, BASE)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("position", "value", "field"),
    [
        (0, b"SKDELTA2", "version"),
        (1, 2, "version"),
        (3, SEGMENTS + 1, "segments"),
        (4, 1 << 31, "streams"),
        (5, 1 << 31, "table_bytes"),
        (6, 1 << 40, "base_size"),
        (7, 1 << 40, "target_size"),
        (9, bytes(32), "target"),
    ],
)
def test_every_field_of_the_header_is_checked(position: int, value: int | bytes, field: str) -> None:
    fields = list(HEADER.unpack_from(DELTA))
    fields[position] = value
    with pytest.raises(WireError, match=field):
        apply(HEADER.pack(*fields) + DELTA[HEADER.size :], BASE)


def test_memory_is_a_few_segments_whatever_the_size_of_the_file() -> None:
    base = bytes(24 << 20)
    target = bytes(23 << 20) + b"\1" * (1 << 20)
    delta = write_delta(base, target, [Match(0, 0, len(target), 1)])
    whole = hashlib.sha256()
    tracemalloc.start()
    try:
        for piece in pieces(delta, base):
            whole.update(piece)
        assert tracemalloc.get_traced_memory()[1] < 2 * (SEGMENT_BYTES + REACH_BYTES) + (8 << 20)
    finally:
        tracemalloc.stop()
    assert whole.digest() == hashlib.sha256(target).digest()


@pytest.mark.parametrize(
    ("matches", "why"),
    [
        ([Match(0, 0, 3, 4)], "whole elements"),
        ([Match(0, 0, 4, 2)], "whole elements"),
        ([Match(0, 0, 8, 4), Match(4, 8, 4, 4)], "overlaps"),
        ([Match(8, 0, 4, 4)], "overlaps, or lies outside the target"),
        ([Match(0, 9, 4, 4)], "outside the base"),
    ],
)
def test_matches_that_cannot_be_are_the_callers_error(matches: list[Match], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        write_delta(bytes(12), bytes(10), matches)


def test_a_frame_that_does_not_say_its_size_is_refused() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(WireError, match="frame of 3 bytes"):
        decode_stream(Coding.ZSTD, silent, 3, field="x")
    assert decode_stream(Coding.ZSTD, compress(b"abc"), 3, field="x").tobytes() == b"abc"
