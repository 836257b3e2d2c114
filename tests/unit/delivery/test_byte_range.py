"""Which bytes a Range header asks for; figures by hand from RFC 9110, section 14.1.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_server.device_api.byte_range import ByteRange, UnsatisfiableError, parse_range


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        (None, 10, ByteRange(0, 10, False)),
        (None, 0, ByteRange(0, 0, False)),
        ("items=1-2", 10, ByteRange(0, 10, False)),
        ("bytes=0-0", 10, ByteRange(0, 1, True)),
        ("bytes=3-7", 10, ByteRange(3, 5, True)),
        ("bytes=3-", 10, ByteRange(3, 7, True)),
        ("bytes=3-99", 10, ByteRange(3, 7, True)),
        ("bytes=-4", 10, ByteRange(6, 4, True)),
        ("bytes=-40", 10, ByteRange(0, 10, True)),
    ],
)
def test_a_range(header: str | None, size: int, expected: ByteRange) -> None:
    assert parse_range(header, size) == expected


def test_the_content_range_names_the_last_byte() -> None:
    assert parse_range("bytes=3-7", 10).content_range(10) == "bytes 3-7/10"


@pytest.mark.parametrize(
    "header",
    ["bytes=", "bytes=-", "bytes=10-", "bytes=7-3", "bytes=-0", "bytes=0-1,3-4", "bytes=a-b", f"bytes={'9' * 19}-"],
)
def test_a_range_that_cannot_be_served(header: str) -> None:
    with pytest.raises(UnsatisfiableError):
        parse_range(header, 10)


@given(st.one_of(st.text(max_size=150), st.from_regex(r"bytes=[0-9,\- ]{0,60}")), st.integers(0, 1 << 40))
def test_any_header_gives_bytes_of_the_file_or_is_refused(header: str, size: int) -> None:
    try:
        wanted = parse_range(header, size)
    except UnsatisfiableError:
        return
    assert wanted.first >= 0
    assert wanted.length >= 0
    assert wanted.first + wanted.length <= size
