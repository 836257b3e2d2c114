"""What messages hold, and what they do not."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.errors import InputError
from skerry_agent.stream.payloads import id_of, payload_limit, read_row, read_samples

SHAPE = (2, 3)
NESTED = [[0.5, 1, 2], [3, 4, 5]]


def as_json(values: Any, **more: Any) -> bytes:
    return json.dumps({"values": values, **more}).encode()


@pytest.mark.parametrize(
    "data",
    [
        as_json(NESTED, id="a", at_ms=12.5),
        as_json([0.5, 1, 2, 3, 4, 5], id="a", at_ms=12.5, extra=[{}]),
        b" \n" + as_json(NESTED),
        np.array(NESTED, dtype="<f4").tobytes(),
    ],
)
def test_a_row_in_every_form(data: bytes) -> None:
    if data.startswith(b" "):  # not an object at its first byte, and no multiple of four
        with pytest.raises(InputError, match="payload"):
            read_row(data + b" " * (len(data) % 4 == 0), SHAPE)
        return
    found = read_row(data, SHAPE)
    assert found.values.tolist() == NESTED
    assert found.values.dtype == np.float32
    assert (found.id, found.at_ms) == (("a", 12.5) if data[:1] == b"{" else ("", None))


def test_samples_in_every_form() -> None:
    for data in (as_json([[1, 2], [3, 4]]), as_json([1, 2, 3, 4]), struct.pack("<4f", 1, 2, 3, 4)):
        assert read_samples(data, 2).values.tolist() == [[1, 2], [3, 4]]
    assert read_samples(as_json([1, 2]), 2).values.shape == (1, 2)


def test_bare_numbers_may_begin_like_json() -> None:
    data = b"{\0\0\0" + struct.pack("<5f", 1, 2, 3, 4, 5)
    assert read_row(data, SHAPE).values[0, 1] == 1


def test_nan_and_infinity_are_left_to_the_model() -> None:
    assert np.isnan(read_row(b'{"values": [NaN, 1, 2, 3, 4, 5]}', SHAPE).values[0, 0])
    assert np.isinf(read_row(as_json([1e300, 1, 2, 3, 4, 5]), SHAPE).values[0, 0])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "payload: expected 1 to"),
        (b"{" + b" " * payload_limit(6), "payload: expected 1 to"),
        (b"{]]]]", "a JSON object, or float32 numbers of 4 bytes each, got 5 bytes"),
        (b"[1, 2, 3]", "a JSON object, or float32"),
        (b"{" * 1003, "a JSON object, or float32"),
        (struct.pack("<5f", 1, 2, 3, 4, 5), r"values: expected \[2, 3\] or 6 numbers, got \[5\]"),
        (as_json([[1, 2], [3, 4], [5, 6]]), r"got \[3, 2\]"),
        (as_json([[1, 2, 3], [4, 5]]), "lists of the same length"),
        (as_json([]), "values: expected numbers, got nothing|got \\[0\\]"),
        (as_json(["1", "2", "3", "4", "5", "6"]), "values: expected numbers"),
        (as_json([True] * 6), "values: expected numbers"),
        (as_json([None] * 6), "values: expected numbers"),
        (as_json([10**400, 1, 2, 3, 4, 5]), "values: expected numbers"),
        (as_json("AAAA"), "values: expected a list of numbers, got str"),
        (b'{"id": "a"}', "values: expected a list of numbers, got NoneType"),
        (as_json(NESTED, id="a" * 129), "id: expected a text of at most 128 bytes"),
        (as_json(NESTED, id="\ud800"), "id: expected a text"),
        (as_json(NESTED, id=7), "id: expected a text"),
        (as_json(NESTED, at_ms="now"), "at_ms: expected milliseconds"),
        (as_json(NESTED, at_ms=True), "at_ms: expected milliseconds"),
        (as_json(NESTED, at_ms=-1), "at_ms: expected milliseconds"),
        (b'{"values": [1, 2, 3, 4, 5, 6], "at_ms": NaN}', "at_ms: expected milliseconds"),
        (as_json(NESTED, at_ms=10**40), "at_ms: expected milliseconds"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_row(data, SHAPE)


def test_samples_have_the_models_channels_and_a_bound() -> None:
    for data in (as_json([1, 2, 3]), as_json([[1, 2, 3]]), as_json([]), as_json(1.5), b"1234567"):
        with pytest.raises(InputError):
            read_samples(data, 2)
    with pytest.raises(InputError, match="with 1 to 65536 samples"):
        read_samples(bytes(4 * 65_537), 1)


def test_the_id_of_a_refused_message_is_found() -> None:
    assert id_of(as_json("nonsense", id="a")) == "a"
    assert [id_of(data) for data in (b"{", b"\xff", as_json([], id=3), b'{"id": "\\ud800"}')] == [""] * 4


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=60).map(lambda data: b"{" + data))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        assert read_row(data, SHAPE).values.dtype == np.float32
    except InputError:
        pass
    try:
        assert read_samples(data, 2).values.shape[1] == 2
    except InputError:
        pass
    assert isinstance(id_of(data), str)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=12,
    )
)
def test_no_document_raises_anything_else(value: Any) -> None:
    for document in ({"values": value}, {"values": NESTED, "id": value}, {"values": NESTED, "at_ms": value}):
        data = json.dumps(document).encode()
        try:
            assert read_row(data, SHAPE).values.shape == SHAPE
        except InputError:
            pass
