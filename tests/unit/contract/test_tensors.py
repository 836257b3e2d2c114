"""The wire form of a model's tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, decode_tensor, encode_bundle, encode_tensor
from skerry_contract.v1.common_pb2 import Tensor, TensorBundle
from skerry_contract.wire import parse_message

ARRAYS: dict[str, Array] = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scalar": np.array(2.5, dtype=np.float64),
    "empty": np.zeros((0, 3), dtype=np.int64),
    "": np.array([1], dtype=np.uint8),
    "large": np.full(70_000, 7, dtype=np.float32),
}


def through_protobuf(data: bytes) -> dict[str, Array]:
    """What the messages say; raises WireError."""
    arrays: dict[str, Array] = {}
    for tensor in parse_message(TensorBundle, data).tensors:
        if tensor.name in arrays:
            raise WireError("tensors", expected="distinct names", got=tensor.name)
        arrays[tensor.name] = decode_tensor(tensor)
    return arrays


def outcome(read: object, data: bytes) -> object:
    """Arrays as lists, or what was wrong."""
    try:
        arrays: dict[str, Array] = read(data)  # type: ignore[operator]  # a function of the bytes
    except WireError as error:
        return str(error)
    return [(name, array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()]


def test_a_bundle_has_the_bytes_that_protobuf_writes() -> None:
    """It is written without copying tensors into messages; whoever reads it needs not know."""
    message = TensorBundle(tensors=[encode_tensor(name, array) for name, array in ARRAYS.items()])
    assert encode_bundle(ARRAYS) == message.SerializeToString(deterministic=True)


def test_a_bundle_is_read_where_it_lies_and_copied_only_where_it_is_not_aligned() -> None:
    for name in ("w", "ww", "www", "wwww"):
        data = encode_bundle({name: ARRAYS["large"]})
        array = decode_bundle(data)[name]
        assert np.array_equal(array, ARRAYS["large"])
        assert array.flags.aligned
        assert not array.flags.writeable
        inside = np.frombuffer(data, np.uint8)
        aligned = (inside.ctypes.data + data.index(np.float32(7).tobytes())) % 4 == 0
        assert np.shares_memory(array, inside) == aligned


@given(st.data())
def test_broken_or_unusual_bundles_are_read_as_protobuf_reads_them(draw: st.DataObject) -> None:
    small = {name: array for name, array in ARRAYS.items() if name != "large"}
    data = bytearray(encode_bundle(small))
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        how = draw.draw(st.sampled_from(["change", "insert", "remove", "end"]))
        if how == "change":
            data[at] = draw.draw(st.integers(0, 255))
        elif how == "insert":
            data[at:at] = draw.draw(st.binary(max_size=4))
        elif how == "remove" and len(data) > 1:
            del data[at]
        else:
            del data[at + 1 :]
    assert outcome(decode_bundle, bytes(data)) == outcome(through_protobuf, bytes(data))


@pytest.mark.parametrize(
    "tensor",
    [
        b"\x1a\x01\x02\x22\x08" + bytes(8) + b"\x0a\x01x\x12\x07float32",  # the data come first
        b"\x0a\x01x\x12\x07float32\x18\x02\x22\x08" + bytes(8),  # a shape that is not packed
        b"\x0a\x01x\x12\x07float32\x1a\x01\x02\x22\x01\x01\x22\x08" + bytes(8),  # the last data count
        b"\x0a\x01x\x12\x07float32\x1a\x01\x02\x22\x88\x80\x00" + bytes(8),  # a length that is longer than it has to be
        b"\x0a\x01x\x12\x07float32\x1a\x01\x02\x22\x08" + bytes(8) + b"\x2a\x01u",  # an unknown field
    ],
)
def test_what_another_writer_may_write_is_read(tensor: bytes) -> None:
    assert Tensor.FromString(tensor).name == "x"
    data = b"\x0a" + bytes([len(tensor)]) + tensor
    assert {name: array.tolist() for name, array in decode_bundle(data).items()} == {"x": [0.0, 0.0]}


def test_a_bundle_has_a_bound() -> None:
    data = encode_bundle({"a": ARRAYS["a"]})
    with pytest.raises(WireError, match="at most 10 bytes"):
        decode_bundle(data, limit=10)
