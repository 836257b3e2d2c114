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

from skerry_contract.errors import WireError
from skerry_contract.limits import PARAMETER_BYTES, TENSOR_RANK, TENSORS
from skerry_contract.v1.common_pb2 import Tensor, TensorBundle
from skerry_contract.wire import parse_message

Array = npt.NDArray[np.generic]

#: Types that may cross the wire, by their NumPy name.
DTYPES: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
}

#: Field numbers and wire type of ``TensorBundle.tensors`` and ``Tensor.data`` (protobuf encoding, "LEN").
_TENSORS_TAG, _DATA_TAG = bytes([1 << 3 | 2]), bytes([4 << 3 | 2])


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


def _varint(value: int) -> bytes:
    """Base 128, as protobuf writes lengths."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_tensor(tensor: Tensor, *, limit: int = PARAMETER_BYTES) -> Array:
    """Read an array out of a message, without a copy and read-only.

    Args:
        tensor: From the wire, not trusted.
        limit: Largest accepted data (bytes).

    Raises:
        WireError: Unknown type, rank or size out of bounds, or data that does not match the shape.
    """
    field = f"tensor {tensor.name[:80]!r}"
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise WireError(f"{field}.dtype", expected=f"one of {', '.join(DTYPES)}", got=tensor.dtype)
    if len(tensor.shape) > TENSOR_RANK:
        raise WireError(f"{field}.shape", expected=f"at most {TENSOR_RANK} dimensions", got=len(tensor.shape))
    # An empty tensor, too, has sizes that NumPy can hold: a dimension of 0 hides the others from the product.
    if math.prod(size or 1 for size in tensor.shape) * dtype.itemsize > limit:
        raise WireError(f"{field}.shape", expected=f"at most {limit} bytes", got=list(tensor.shape))
    expected = math.prod(tensor.shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise WireError(
            f"{field}.data",
            expected=f"{expected} bytes for {tensor.dtype} {list(tensor.shape)}",
            got=f"{len(tensor.data)} bytes",
        )
    if dtype.name == "bool" and any(byte > 1 for byte in tensor.data):
        raise WireError(f"{field}.data", expected="bytes 0 and 1 for bool", got="other values")
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tuple(tensor.shape))


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
            head += _DATA_TAG + _varint(data.nbytes)
        parts += [_TENSORS_TAG, _varint(len(head) + data.nbytes), head, data]
    return b"".join(parts)


def decode_bundle(data: bytes, *, limit: int = PARAMETER_BYTES) -> dict[str, Array]:
    """Read what :func:`encode_bundle` wrote.

    Raises:
        WireError: Broken bytes, too many tensors, duplicate names, or a bad tensor.
    """
    bundle = parse_message(TensorBundle, data, limit=limit)
    if len(bundle.tensors) > TENSORS:
        raise WireError("tensors", expected=f"at most {TENSORS}", got=len(bundle.tensors))
    arrays: dict[str, Array] = {}
    for tensor in bundle.tensors:
        if tensor.name in arrays:
            raise WireError("tensors", expected="distinct names", got=tensor.name)
        arrays[tensor.name] = decode_tensor(tensor, limit=limit)
    return arrays
