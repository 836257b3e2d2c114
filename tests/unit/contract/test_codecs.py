"""Every codec of the contract: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry_contract.bitmap import decode_bitmap, encode_bitmap
from skerry_contract.errors import WireError
from skerry_contract.histogram import (
    build_edges,
    count_values,
    decode_counts,
    encode_counts,
    equal_probability_edges,
    parse_edges,
)
from skerry_contract.limits import CELL_COUNT, TENSORS
from skerry_contract.tensors import DTYPES, decode_bundle, decode_tensor, encode_bundle, encode_tensor
from skerry_contract.topics import (
    DeviceTopic,
    bulk_topic,
    device_bulk_topic,
    device_topic,
    every_device_filter,
    parse_topic,
)
from skerry_contract.v1.common_pb2 import Tensor, TensorBundle
from skerry_contract.v1.device_pb2 import DesiredState, ReportedState
from skerry_contract.v1.telemetry_pb2 import HistogramCounts, UplinkMessage
from skerry_contract.wire import parse_message

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@given(arrays, st.text(max_size=20))
def test_a_tensor_survives_the_wire_bit_for_bit(array: np.ndarray, name: str) -> None:
    wire = Tensor.FromString(encode_tensor(name, array).SerializeToString())
    decoded = decode_tensor(wire)
    assert wire.name == name
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


@given(st.dictionaries(st.text(max_size=8), arrays, max_size=5))
def test_a_bundle_keeps_names_and_order(tensors: dict[str, np.ndarray]) -> None:
    decoded = decode_bundle(encode_bundle(tensors))
    assert list(decoded) == list(tensors)


def test_a_tensor_that_is_not_contiguous_travels_in_c_order() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert decode_tensor(encode_tensor("t", array)).tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(name="t", dtype="complex64", shape=[1], data=bytes(8)), "dtype"),
        (Tensor(name="t", dtype="float32", shape=[1] * 9, data=bytes(4)), "shape"),
        (Tensor(name="t", dtype="float32", shape=[1 << 62, 1 << 62], data=b""), "shape"),
        (Tensor(name="t", dtype="float32", shape=[2], data=bytes(7)), "data"),
        (Tensor(name="t", dtype="bool", shape=[1], data=b"\x02"), "data"),
    ],
)
def test_a_tensor_that_lies_is_refused_by_field(tensor: Tensor, field: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_tensor(tensor)
    assert caught.value.field.endswith(field)


def test_types_that_cannot_travel_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="complex64"):
        encode_tensor("t", np.zeros(1, np.complex64))


def test_bundles_are_bounded_and_names_distinct() -> None:
    twice = TensorBundle(tensors=[encode_tensor("a", np.zeros(1, np.int8))] * 2)
    with pytest.raises(WireError, match="distinct names"):
        decode_bundle(twice.SerializeToString())
    many = TensorBundle(tensors=[Tensor(name=str(i), dtype="int8", shape=[0]) for i in range(TENSORS + 1)])
    with pytest.raises(WireError, match="at most"):
        decode_bundle(many.SerializeToString())
    with pytest.raises(WireError, match="at most 8 bytes"):
        decode_bundle(bytes(9), limit=8)


@given(st.binary(max_size=300))
def test_garbage_never_raises_anything_but_a_wire_error(data: bytes) -> None:
    for parse in (
        lambda: decode_bundle(data),
        lambda: parse_edges(data),
        lambda: parse_message(UplinkMessage, data),
        lambda: parse_message(ReportedState, data),
        lambda: parse_message(DesiredState, data),
        lambda: decode_counts(HistogramCounts(counts=data), cells=7),
    ):
        with contextlib.suppress(WireError):
            parse()


@given(st.lists(st.integers(0, CELL_COUNT), min_size=1, max_size=64))
def test_counts_survive_the_wire(counts: list[int]) -> None:
    assert decode_counts(encode_counts(counts), cells=len(counts)).tolist() == counts


def test_counts_take_one_byte_below_128() -> None:
    assert encode_counts([0, 1, 127]).counts == b"\x00\x01\x7f"
    assert encode_counts([128, 300]).counts == b"\x80\x01\xac\x02"


@pytest.mark.parametrize(
    ("data", "cells", "expected"),
    [
        (b"\x01\x02", 3, "3 cells"),
        (b"\x01\x80", 2, "complete varints"),
        (b"\xff" * 9, 2, "varints of at most 8 bytes"),
        (bytes(100), 2, "at most 16 bytes"),
    ],
)
def test_counts_that_do_not_fit_are_refused(data: bytes, cells: int, expected: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_counts(HistogramCounts(counts=data), cells=cells, field="drift.features[0]")
    assert caught.value.field == "drift.features[0]"
    assert expected in caught.value.expected


@given(
    hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6)),
    st.integers(2, 40),
)
def test_edges_increase_and_every_value_is_counted_once(values: np.ndarray, cells: int) -> None:
    edges = equal_probability_edges(values, cells=cells)
    assert (np.diff(edges) > 0).all()
    assert 1 <= edges.size <= cells - 1
    assert count_values(values, edges).sum() == values.size


def test_cells_are_left_open_as_documented() -> None:
    edges = np.array([1.0, 2.0])
    assert count_values(np.array([0.0, 1.0, 1.5, 2.0, 9.0]), edges).tolist() == [2, 2, 1]


def test_quartiles_of_eight_values_by_hand() -> None:
    values = np.arange(1.0, 9.0)
    edges = equal_probability_edges(values, cells=4)
    assert edges.tolist() == [2.75, 4.5, 6.25]
    assert count_values(values, edges).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("values", "cells", "message"),
    [
        (np.array([]), 4, "at least one"),
        (np.array([1.0, np.nan]), 4, "finite"),
        (np.array([1.0]), 1, "cells"),
    ],
)
def test_edges_need_usable_values(values: np.ndarray, cells: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equal_probability_edges(values, cells=cells)


def test_edges_of_a_release_travel_and_broken_ones_are_named() -> None:
    message = build_edges(
        {"mean": np.arange(100.0)},
        cells=10,
        classes=["a", "b"],
        confidence_edges=[0.5],
        latency_edges=[100.0, 1000.0],
        predictions=np.array([60, 40]),
    )
    parsed = parse_edges(message.SerializeToString())
    assert parsed.features[0].name == "mean"
    assert decode_counts(parsed.features[0].reference, cells=10).sum() == 100
    message.features[0].edges[3] = message.features[0].edges[2]
    with pytest.raises(WireError, match="strictly increasing"):
        parse_edges(message.SerializeToString())


@given(st.sets(st.integers(0, 99)), st.just(100))
def test_a_bitmap_survives_the_wire(indices: set[int], count: int) -> None:
    assert decode_bitmap(encode_bitmap(indices, count), count) == sorted(indices)


def test_a_bitmap_is_least_significant_bit_first() -> None:
    assert encode_bitmap([0, 9], 12) == b"\x01\x02"


def test_bitmaps_of_another_length_or_with_bits_beyond_the_end_are_refused() -> None:
    with pytest.raises(WireError, match="2 bytes for 12 chunks"):
        decode_bitmap(b"\x01", 12)
    with pytest.raises(WireError, match="bits below 12"):
        decode_bitmap(b"\x00\x80", 12)


@given(names, digests, st.sampled_from(list(DeviceTopic)))
def test_every_topic_parses_back(device: str, digest: str, kind: DeviceTopic) -> None:
    own = parse_topic(device_topic(device, kind))
    assert (own.device_id, own.kind, own.sha256_hex) == (device, kind, None)
    unicast = parse_topic(device_bulk_topic(device, digest))
    assert (unicast.device_id, unicast.kind, unicast.sha256_hex) == (device, None, digest)
    broadcast = parse_topic(bulk_topic(digest))
    assert (broadcast.device_id, broadcast.kind, broadcast.sha256_hex) == (None, None, digest)
    assert max(t.count("/") for t in (device_topic(device, kind), device_bulk_topic(device, digest))) <= 7


@pytest.mark.parametrize(
    "topic", ["", "skerry/v1", "skerry/v1/d/+/up", "skerry/v1/d/UP/up", "skerry/v1/d/a/x", "a" * 300]
)
def test_topics_that_are_not_ours_are_refused(topic: str) -> None:
    with pytest.raises(WireError):
        parse_topic(topic)


def test_a_name_with_wildcards_can_never_become_a_topic() -> None:
    with pytest.raises(WireError):
        device_topic("a/#", DeviceTopic.UP)
    assert every_device_filter(DeviceTopic.UP, share="server") == "$share/server/skerry/v1/d/+/up"
