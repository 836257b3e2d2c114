"""Tensors on the wire: little endian, C order, with bounds.

>>> import numpy as np
>>> decode_tensor(encode_tensor("x", np.arange(3, dtype=np.float32))).tolist()
[0.0, 1.0, 2.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from skerry_contract.errors import WireError
from skerry_contract.limits import PARAMETER_BYTES, TENSOR_RANK, TENSORS
from skerry_contract.v1.common_pb2 import Tensor, TensorBundle
from skerry_contract.wire import encode_varint, parse_message

Array = npt.NDArray[np.generic]

#: Types that may cross the wire, by their NumPy name.
DTYPES: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
}

#: Field numbers and wire type of ``TensorBundle.tensors`` and ``Tensor.data`` (protobuf encoding, "LEN").
_TENSORS_TAG, _DATA_TAG = bytes([1 << 3 | 2]), bytes([4 << 3 | 2])
#: Those of ``Tensor.name``, ``dtype`` and ``shape`` (packed), and the most bytes that they take in a bundle of ours.
_HEAD_TAGS = frozenset(number << 3 | 2 for number in (1, 2, 3))
_HEAD_BYTES = 1 << 16
#: Longest length that is read here.
_VARINT_BYTES = 5


def encode_tensor(name: str, array: Array) -> Tensor:
    """Put an array into a message.

    Args:
        name: Name of the tensor.
        array: Any shape, one of :data:`DTYPES`; copied into C order where needed. A 0-d array stays 0-d.

    Raises:
        ValueError: The type cannot cross the wire, or the rank is above 8.
    """
    data = _little_endian(name, array)
    return Tensor(name=name, dtype=array.dtype.name, shape=array.shape, data=bytes(data))


def _little_endian(name: str, array: Array) -> memoryview:
    """The values in C order, without a copy where they are; raises ValueError."""
    if array.dtype.name not in DTYPES:
        raise ValueError(f"tensor {name}: type {array.dtype} cannot cross the wire")
    if array.ndim > TENSOR_RANK:
        raise ValueError(f"tensor {name}: rank {array.ndim} is above {TENSOR_RANK}")
    little = np.ascontiguousarray(array.astype(DTYPES[array.dtype.name], copy=False)).reshape(-1)
    return little.view(np.uint8).data


def decode_tensor(tensor: Tensor, *, limit: int = PARAMETER_BYTES) -> Array:
    """Read an array out of a message, without a copy and read-only.

    Args:
        tensor: From the wire, not trusted.
        limit: Largest accepted data (bytes).

    Raises:
        WireError: Unknown type, rank or size out of bounds, or data that does not match the shape.
    """
    return _to_array(tensor, tensor.data, limit=limit)


def _to_array(head: Tensor, data: bytes | memoryview, *, limit: int) -> Array:
    """The array that ``head`` describes, over ``data``; raises as :func:`decode_tensor`."""
    field = f"tensor {head.name[:80]!r}"
    dtype = DTYPES.get(head.dtype)
    if dtype is None:
        raise WireError(f"{field}.dtype", expected=f"one of {', '.join(DTYPES)}", got=head.dtype)
    if len(head.shape) > TENSOR_RANK:
        raise WireError(f"{field}.shape", expected=f"at most {TENSOR_RANK} dimensions", got=len(head.shape))
    # An empty tensor, too, has sizes that NumPy can hold: a dimension of 0 hides the others from the product.
    if math.prod(size or 1 for size in head.shape) * dtype.itemsize > limit:
        raise WireError(f"{field}.shape", expected=f"at most {limit} bytes", got=list(head.shape))
    expected = math.prod(head.shape) * dtype.itemsize
    if len(data) != expected:
        raise WireError(
            f"{field}.data",
            expected=f"{expected} bytes for {head.dtype} {list(head.shape)}",
            got=f"{len(data)} bytes",
        )
    if dtype.name == "bool" and any(byte > 1 for byte in data):
        raise WireError(f"{field}.data", expected="bytes 0 and 1 for bool", got="other values")
    array = np.frombuffer(data, dtype=dtype).reshape(tuple(head.shape))
    if not array.flags.aligned:  # it lies in a bundle as it comes; not every processor and library reads it there
        array = array.copy()
        array.flags.writeable = False
    return array


def encode_bundle(arrays: Mapping[str, Array]) -> bytes:
    """Serialise named arrays in the order of the mapping.

    The bytes are those of ``TensorBundle.SerializeToString()``; they are put together here because protobuf would copy
    the data four times.
    """
    parts: list[bytes | memoryview] = []
    for name, array in arrays.items():
        data = _little_endian(name, array)
        head = Tensor(name=name, dtype=array.dtype.name, shape=array.shape).SerializeToString()
        if data.nbytes:
            head += _DATA_TAG + encode_varint(data.nbytes)
        parts += [_TENSORS_TAG, encode_varint(len(head) + data.nbytes), head, data]
    return b"".join(parts)


def decode_bundle(data: bytes, *, limit: int = PARAMETER_BYTES) -> dict[str, Array]:
    """Read what :func:`encode_bundle` wrote: read-only arrays that keep ``data``, or copies where it is not aligned.

    Raises:
        WireError: Broken bytes, too many tensors, duplicate names, or a bad tensor.
    """
    parts = _canonical_parts(data) if len(data) <= limit else None
    if parts is None:
        bundle = parse_message(TensorBundle, data, limit=limit)
        parts = [(tensor, tensor.data) for tensor in bundle.tensors]
    if len(parts) > TENSORS:
        raise WireError("tensors", expected=f"at most {TENSORS}", got=len(parts))
    arrays: dict[str, Array] = {}
    for head, content in parts:
        if head.name in arrays:
            raise WireError("tensors", expected="distinct names", got=head.name)
        arrays[head.name] = _to_array(head, content, limit=limit)
    return arrays


def _canonical_parts(data: bytes) -> list[tuple[Tensor, bytes | memoryview]] | None:
    """Tensors without their data, and the data where it lies, of a bundle as :func:`encode_bundle` writes it.

    None for every other bundle, broken ones included: protobuf, which copies the data twice, is the judge of those.
    """
    view = memoryview(data)
    parts: list[tuple[Tensor, bytes | memoryview]] = []
    position = 0
    while position < len(view):
        if view[position] != _TENSORS_TAG[0] or len(parts) > TENSORS:
            return None
        length, position = _read_varint(view, position + 1)
        end = position + length
        if end > len(view):
            return None
        part = view[position:end]
        at = _data_position(part)
        if at is None:
            return None
        try:
            head = Tensor.FromString(bytes(part[:at]))
        except DecodeError:
            return None
        content: bytes | memoryview = b""
        if at < len(part):
            size, start = _read_varint(part, at + 1)
            if start + size != len(part):
                return None  # something follows the data
            content = part[start:]
        parts.append((head, content))
        position = end
    return parts


def _data_position(part: memoryview) -> int | None:
    """Where the field with the data begins, or the end of ``part``; None if the fields before it are not as usual."""
    position = 0
    while position < len(part):
        tag = part[position]
        if tag == _DATA_TAG[0]:
            return position
        if tag not in _HEAD_TAGS or position > _HEAD_BYTES:
            return None
        length, start = _read_varint(part, position + 1)
        position = start + length
    return len(part) if position == len(part) else None


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """A length and where it ends; a length beyond every bound if there is none."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        if position == len(view):
            break
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return 1 << 62, position
