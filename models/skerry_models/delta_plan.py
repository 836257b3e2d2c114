"""Where the tensors of a file lie, so that a delta can subtract them: byte ranges in ONNX models and parameter files.

A protobuf message does not say where in the file a field came from, so the wire format is walked here: a few lines, for
files that this package wrote itself. A tensor of two files is the same one if name, type and shape are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from skerry_contract.delta_writer import Match

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: onnx.TensorProto.DataType and our own names: bytes of an element that can be subtracted.
_ONNX_WIDTHS = {1: 4, 2: 1, 3: 1, 6: 4}
_OWN_WIDTHS = {b"float32": 4, b"uint8": 1, b"int8": 1, b"int32": 4}


@dataclass(frozen=True)
class TensorRange:
    """A tensor in a file.

    Attributes:
        name: Its name.
        dtype: Type, as its format writes it.
        shape: Shape, as its format writes it.
        start: First byte of its values.
        length: Bytes of its values, little-endian, C order.
        width: Bytes of an element: 1 or 4.
    """

    name: bytes
    dtype: bytes | int
    shape: tuple[int, ...]
    start: int
    length: int
    width: int


@dataclass(frozen=True)
class _Field:
    """One field: its number, and its value as an integer or as the place of its bytes."""

    number: int
    wire_type: int
    value: int
    start: int
    stop: int


def plan_matches(name: str, base: bytes, target: bytes) -> list[Match]:
    """Tensors that both versions of a bundle's file have, in the order of the target.

    Args:
        name: Name of the file: models end in ``.onnx``, parameters are ``parameters.pb``; others have no tensors.
        base: One version.
        target: The other.

    Raises:
        ValueError: A file that is not of its kind.
    """
    if not name.endswith(".onnx") and name != "parameters.pb":
        return []
    of_base, of_target = (
        onnx_ranges(data) if name.endswith(".onnx") else parameter_ranges(data) for data in (base, target)
    )
    known = {(tensor.name, tensor.dtype, tensor.shape, tensor.length): tensor for tensor in of_base}
    matches = []
    for tensor in of_target:
        same = known.get((tensor.name, tensor.dtype, tensor.shape, tensor.length))
        if same is not None:
            matches.append(Match(tensor.start, same.start, tensor.length, tensor.width))
    return matches


def onnx_ranges(model: bytes) -> list[TensorRange]:
    """Initialisers of a ModelProto whose values lie in one piece and can be subtracted; raises ValueError."""
    ranges = []
    for graph in _fields(model, 0, len(model), number=7):
        for tensor in _fields(model, graph.start, graph.stop, number=5):
            found = _onnx_tensor(model, tensor)
            if found is not None:
                ranges.append(found)
    return ranges


def _onnx_tensor(model: bytes, tensor: _Field) -> TensorRange | None:
    name, kind = b"", 0
    shape: tuple[int, ...] = ()
    values: _Field | None = None
    for field in _fields(model, tensor.start, tensor.stop):
        if field.number == 1:
            shape += _integers(model, field)
        elif field.number == 2:
            kind = field.value
        elif field.number == 8:
            name = model[field.start : field.stop]
        elif field.wire_type == _BYTES and field.number in (4, 9):  # float_data (packed) or raw_data
            values = field
    if values is None or kind not in _ONNX_WIDTHS or values.start == values.stop:
        return None
    return TensorRange(name, kind, shape, values.start, values.stop - values.start, _ONNX_WIDTHS[kind])


def parameter_ranges(bundle: bytes) -> list[TensorRange]:
    """Tensors of a TensorBundle (``parameters.pb``) that can be subtracted; raises ValueError."""
    ranges = []
    for tensor in _fields(bundle, 0, len(bundle), number=1):
        name, dtype = b"", b""
        shape: tuple[int, ...] = ()
        values: _Field | None = None
        for field in _fields(bundle, tensor.start, tensor.stop):
            if field.number == 1:
                name = bundle[field.start : field.stop]
            elif field.number == 2:
                dtype = bundle[field.start : field.stop]
            elif field.number == 3:
                shape += _integers(bundle, field)
            elif field.number == 4:
                values = field
        if values is not None and dtype in _OWN_WIDTHS and values.start < values.stop:
            length = values.stop - values.start
            ranges.append(TensorRange(name, dtype, shape, values.start, length, _OWN_WIDTHS[dtype]))
    return ranges


def _fields(data: bytes, start: int, stop: int, *, number: int | None = None) -> Iterator[_Field]:
    """Fields of the message in ``data[start:stop]``, or those of one number that are messages or bytes."""
    while start < stop:
        tag, start = _varint(data, start, stop)
        wire_type, value, begin = tag & 7, 0, start
        if wire_type == _VARINT:
            value, start = _varint(data, start, stop)
        elif wire_type == _BYTES:
            length, begin = _varint(data, start, stop)
            start = begin + length
        elif wire_type in (_FIXED64, _FIXED32):
            start += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if start > stop:
            raise ValueError(f"a field reaches to byte {start}, its message ends at {stop}")
        if number is None or (tag >> 3 == number and wire_type == _BYTES):
            yield _Field(tag >> 3, wire_type, value, begin, start)


def _integers(data: bytes, field: _Field) -> tuple[int, ...]:
    """Values of a repeated integer field, packed or not."""
    if field.wire_type == _VARINT:
        return (field.value,)
    values, position = [], field.start
    while position < field.stop:
        value, position = _varint(data, position, field.stop)
        values.append(value)
    return tuple(values)


def _varint(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """A base-128 integer and the place behind it."""
    value = 0
    for shift, place in zip(range(0, 70, 7), range(start, stop), strict=False):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
    raise ValueError(f"an integer without end at byte {start}")
