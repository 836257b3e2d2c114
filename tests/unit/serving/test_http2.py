"""What the gRPC door makes of headers and compressed messages."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.serving.http2 import CompressionError, Problem, Request, decompress, timeout_seconds

PACK: dict[bytes, Callable[[bytes], bytes]] = {b"gzip": gzip.compress, b"deflate": zlib.compress}
UNITS: dict[bytes, Fraction | int] = {
    b"H": 3600,
    b"M": 60,
    b"S": 1,
    b"m": Fraction(1, 10**3),
    b"u": Fraction(1, 10**6),
    b"n": Fraction(1, 10**9),
}

encodings = st.sampled_from(sorted(PACK))


def test_a_request_has_the_fields_of_the_compiled_connection() -> None:
    assert Request._fields == (
        "stream",
        "path",
        "timeout",
        "encoding",
        "message",
        "compressed",
        "problem",
        "begun_ns",
    )
    assert [problem.name for problem in Problem] == ["NONE", "TOO_LARGE", "NOT_GRPC", "BROKEN"]


class TestTimeout:
    def test_none(self) -> None:
        assert timeout_seconds(b"") is None

    @given(st.integers(0, 99_999_999), st.sampled_from(sorted(UNITS)), st.integers(0, 8))
    def test_digits_and_a_unit(self, value: int, unit: bytes, zeros: int) -> None:
        digits = str(value).zfill(zeros).encode()
        assert timeout_seconds(digits + unit) == pytest.approx(float(value * UNITS[unit]), rel=1e-12)

    @pytest.mark.parametrize(
        "value",
        [
            b"S",
            b"5",
            b"123456789S",
            b"-1S",
            b"+1S",
            b"1.5S",
            b" 1S",
            b"1S ",
            b"1 S",
            b"1s",
            b"1\xc2\xb5",
            b"\xb2S",
            b"1e3S",
        ],
    )
    def test_anything_else_is_refused(self, value: bytes) -> None:
        with pytest.raises(ValueError, match="up to 8 digits"):
            timeout_seconds(value)

    @given(st.binary(min_size=1, max_size=12))
    def test_any_bytes_are_a_time_or_a_value_error(self, value: bytes) -> None:
        fits = 2 <= len(value) <= 9 and set(value[:-1]) <= set(b"0123456789") and value[-1:] in UNITS
        try:
            assert (timeout_seconds(value) or 0.0) >= 0.0
        except ValueError:
            assert not fits
        else:
            assert fits


class TestDecompress:
    @given(encodings, st.binary(max_size=2000), st.integers(0, 3))
    def test_what_was_compressed(self, encoding: bytes, plain: bytes, spare: int) -> None:
        assert decompress(PACK[encoding](plain), encoding, len(plain) + spare) == plain

    @given(encodings, st.binary(min_size=1, max_size=2000), st.data())
    def test_a_byte_too_long(self, encoding: bytes, plain: bytes, data: st.DataObject) -> None:
        limit = data.draw(st.integers(0, len(plain) - 1))
        with pytest.raises(OverflowError, match=f"than {limit} bytes"):
            decompress(PACK[encoding](plain), encoding, limit)

    @pytest.mark.parametrize("encoding", sorted(PACK))
    def test_a_bomb_is_not_unpacked(self, encoding: bytes) -> None:
        bomb = PACK[encoding](bytes(16 << 20))
        tracemalloc.start()
        try:
            with pytest.raises(OverflowError):
                decompress(bomb, encoding, 10_000)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @given(encodings, st.binary(max_size=500), st.data())
    def test_one_that_ends_too_early(self, encoding: bytes, plain: bytes, data: st.DataObject) -> None:
        whole = PACK[encoding](plain)
        with pytest.raises(CompressionError, match="too early"):
            decompress(whole[: data.draw(st.integers(0, len(whole) - 1))], encoding, 1000)

    @given(encodings, st.binary(max_size=500), st.binary(min_size=1, max_size=50))
    def test_bytes_after_its_end(self, encoding: bytes, plain: bytes, more: bytes) -> None:
        with pytest.raises(CompressionError, match="more after its end"):
            decompress(PACK[encoding](plain) + more, encoding, 1000)

    @given(encodings, st.binary(max_size=200))
    def test_a_second_member(self, encoding: bytes, plain: bytes) -> None:
        with pytest.raises(CompressionError, match="more after its end"):
            decompress(PACK[encoding](plain) * 2, encoding, 1000)

    @pytest.mark.parametrize("encoding", [b"", b"identity", b"GZIP", b"br", b"\xff\xfe" * 20, b"gzip,deflate"])
    def test_another_encoding(self, encoding: bytes) -> None:
        with pytest.raises(CompressionError, match="expected deflate or gzip"):
            decompress(b"x", encoding, 1000)

    def test_an_encoding_that_is_not_the_one_said(self) -> None:
        for said, made in ((b"gzip", b"deflate"), (b"deflate", b"gzip")):
            with pytest.raises(CompressionError, match=f"not {said.decode()}"):
                decompress(PACK[made](b"abc"), said, 1000)

    @given(encodings, st.binary(max_size=300))
    def test_any_bytes(self, encoding: bytes, message: bytes) -> None:
        try:
            assert len(decompress(message, encoding, 1000)) <= 1000
        except (CompressionError, OverflowError):
            pass
