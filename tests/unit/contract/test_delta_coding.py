"""The rANS coder: a stream by hand, any data, near the entropy, and what damage does."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.delta_coding import Coding, decode_rans, decode_stream, encode_rans, encode_stream, lanes_for
from skerry_contract.delta_writer import order0_bits
from skerry_contract.errors import WireError


def test_two_symbols_by_hand() -> None:
    # 0 and 1 with frequency 8,192 of 16,384; four lanes begin at 65,536. Symbol s takes a state x to
    # (x // 8192) * 16384 + x % 8192 + 8192 s = 131,072 + 8,192 s.
    expected = bytes([1, 0, 1]) + struct.pack("<2H", 8192, 8192) + struct.pack("<4I", 139264, 131072, 139264, 131072)
    assert encode_rans(bytes([1, 0, 1, 0])) == expected
    assert decode_rans(expected, 4, field="x").tolist() == [1, 0, 1, 0]


def test_one_symbol_takes_no_words() -> None:
    assert len(encode_rans(b"\7" * 1_000)) == 1 + 1 + 2 + 4 * lanes_for(1_000)


@pytest.mark.parametrize(("size", "lanes"), [(1, 4), (1_000, 4), (20_000, 32), (1 << 20, 512)])
def test_lanes_follow_from_the_size(size: int, lanes: int) -> None:
    assert lanes_for(size) == lanes


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0, 20.0])
def test_it_comes_near_the_entropy(deviation: float) -> None:
    data = np.round(np.random.default_rng(3).normal(0, deviation, 60_000)).astype(np.int8).tobytes()
    coded = encode_rans(data)
    assert decode_rans(coded, len(data), field="x").tobytes() == data
    assert order0_bits(data) / 8 <= len(coded) <= order0_bits(data) / 8 * 1.02 + 3 * 256


def test_entropy_by_hand() -> None:
    assert order0_bits(b"") == 0
    assert order0_bits(b"aaaa") == 0
    assert order0_bits(b"abab") == 4
    assert order0_bits(b"aabc") == 6


@given(st.binary(min_size=1, max_size=600) | st.integers(1, 2_000).map(lambda n: bytes(range(250)) * (n // 250 + 1)))
@settings(max_examples=80, deadline=None)
def test_any_bytes_come_back(data: bytes) -> None:
    assert decode_rans(encode_rans(data), len(data), field="x").tobytes() == data
    coding, payload = encode_stream(data, data[: len(data) // 2])
    assert len(payload) <= len(data)
    back = decode_stream(coding, payload, len(data), field="x", dictionary=lambda: data[: len(data) // 2])
    assert back.tobytes() == data


DATA = np.random.default_rng(5).integers(0, 4, 600, dtype=np.uint8).tobytes()
CODED = encode_rans(DATA)


@given(st.integers(0, len(CODED) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_stream_is_refused_or_decodes_to_its_size(position: int, change: int) -> None:
    damaged = bytearray(CODED)
    damaged[position] ^= change
    try:
        assert len(decode_rans(bytes(damaged), len(DATA), field="x")) == len(DATA)
    except WireError:
        return


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        CODED[:-2],
        CODED + b"\0\0",
        CODED + b"\0",
        bytes([1, 1, 0]) + CODED[3:],
        bytes([3, 0, 1, 2, 3]) + struct.pack("<4H", 0, 8192, 4096, 4096) + CODED[13:],
        bytes([3, 0, 1, 2, 3]) + struct.pack("<4H", 4096, 4096, 4096, 4095) + CODED[13:],
        CODED[:13] + bytes(4) + CODED[17:],
    ],
    ids=["empty", "no table", "short", "long", "half a word", "unsorted", "zero", "sum", "state too low"],
)
def test_a_stream_that_cannot_be_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_rans(payload, len(DATA), field="x")


def test_the_smallest_way_is_chosen() -> None:
    noise = np.random.default_rng(1).integers(0, 256, 500, dtype=np.uint8).tobytes()
    assert encode_stream(noise) == (Coding.RAW, noise)
    assert encode_stream(bytes(10_000))[0] is Coding.ZSTD
    assert encode_stream(noise, b"x" + noise)[0] is Coding.ZSTD_BASE
    weights = np.round(np.random.default_rng(2).normal(0, 2, 5_000)).astype(np.int8).tobytes()
    assert encode_stream(weights)[0] is Coding.RANS
