"""The frames of the lane: what goes in comes out, and nothing that arrives is believed."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract import lane
from skerry_contract.campaign import INLINE_BYTES, Scalar
from skerry_contract.errors import WireError


def no_blob(sha256: str, size: int) -> bytes:
    raise AssertionError(sha256)


values = st.one_of(
    st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text(max_size=50), st.binary(max_size=300)
)


@given(st.dictionaries(st.text(min_size=1, max_size=20), values, max_size=10))
def test_fields_arrive_as_they_were(fields: dict[str, Scalar]) -> None:
    frame, blobs = lane.pack_fields(fields)
    assert (lane.unpack_fields(frame, read=no_blob), blobs, lane.named_blobs(frame)) == (fields, {}, {})


def test_what_is_large_stays_out_of_the_frame() -> None:
    large = b"x" * (INLINE_BYTES + 1)
    sha256 = hashlib.sha256(large).hexdigest()
    frame, blobs = lane.pack_fields({"a": large, "b": b"x" * INLINE_BYTES, "c": 1})
    assert blobs == {sha256: large}
    assert lane.named_blobs(frame) == {sha256: len(large)}
    assert len(frame) < INLINE_BYTES + 300
    asked: list[tuple[str, int]] = []

    def read(name: str, size: int) -> bytes:
        asked.append((name, size))
        return large

    assert lane.unpack_fields(frame, read=read) == {"a": large, "b": b"x" * INLINE_BYTES, "c": 1}
    assert asked == [(sha256, len(large))]


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    for read in (lane.unpack, lane.named_blobs):
        try:
            read(data)
        except WireError:
            continue


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ({}, "fields"),
        ({"fields": []}, "fields"),
        ({"fields": {str(number): 1 for number in range(257)}}, "fields"),
        ({"fields": {"x" * 101: 1}}, "fields"),
        ({"fields": {"x": None}}, "fields.x"),
        ({"fields": {"x": True}}, "fields.x"),
        ({"fields": {"x": [1]}}, "fields.x"),
        ({"fields": {"x": {"at": 0}}}, "fields.x.size"),
        ({"fields": {"x": {"at": 0, "size": -1}}}, "fields.x.size"),
        ({"fields": {"x": {"at": 0, "size": True}}}, "fields.x.size"),
        ({"fields": {"x": {"at": 1, "size": 3}}}, "fields.x.at"),
        ({"fields": {"x": {"at": -1, "size": 1}}}, "fields.x.at"),
        ({"fields": {"x": {"at": "0", "size": 1}}}, "fields.x.at"),
        ({"fields": {"x": {"sha256": "../keys", "size": 1}}}, "fields.x.sha256"),
        ({"fields": {"x": {"sha256": 7, "size": 1}}}, "fields.x.sha256"),
        ({"fields": {"x": {"sha256": "a" * 64, "size": 5 << 30}}}, "fields.x.size"),
    ],
)
def test_a_field_that_is_none_is_named(head: dict[str, object], field: str) -> None:
    with pytest.raises(WireError) as refused:
        lane.unpack_fields(lane.pack(head, b"abc"), read=no_blob)
    assert refused.value.field == field


@pytest.mark.parametrize("frame", [b"", b"\0\0\0", b"\0\0\0\5{}", b"\xff\xff\xff\xff{}", b"\0\0\0\2[]", b"\0\0\0\1{"])
def test_a_frame_that_is_none_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError):
        lane.unpack(frame)


def test_a_frame_has_a_bound() -> None:
    frame = lane.pack({}, b"x" * 100)
    with pytest.raises(WireError, match="4 to 50 bytes"):
        lane.unpack(frame, most=50)
