"""Packed records of secure aggregation: length-prefixed bytes, bitmaps over the roster, and fields with bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from skerry_contract.campaign import Scalar
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name


def write_bytes(parts: bytearray, data: bytes) -> None:
    """Append ``data`` with its length in front (2 bytes, big endian)."""
    parts += len(data).to_bytes(2, "big")
    parts += data


class Reader:
    """Takes records off bytes from the wire; every error is a WireError of ``field``."""

    def __init__(self, field: str, data: bytes) -> None:
        self._field = field
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not taken."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise WireError(self._field, expected=f"{count} bytes at {self._at}", got=f"{len(taken)} bytes")
        self._at += count
        return taken

    def bytes(self, limit: int) -> bytes:
        """What :func:`write_bytes` wrote, at most ``limit`` bytes."""
        length = int.from_bytes(self.take(2), "big")
        if length > limit:
            raise WireError(self._field, expected=f"at most {limit} bytes at {self._at}", got=length)
        return self.take(length)

    def text(self, limit: int) -> str:
        """The same as ASCII."""
        try:
            return self.bytes(limit).decode("ascii")
        except UnicodeDecodeError as error:
            raise WireError(self._field, expected="ASCII", got=str(error)) from error

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise WireError(self._field, expected=f"{self._at} bytes", got=f"{len(self._data)} bytes")


def bitmap(indices: Iterable[int], size: int) -> bytes:
    """A set of indices below ``size``, lowest bit first."""
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits.to_bytes((size + 7) // 8, "little")


def indices_of(bits: bytes, size: int, *, field: str) -> frozenset[int]:
    """What :func:`bitmap` wrote.

    Raises:
        WireError: Another length, or an index beyond the last.
    """
    value = int.from_bytes(bits, "little")
    if len(bits) != (size + 7) // 8 or value >> size:
        raise WireError(field, expected=f"a bitmap of {size} devices", got=f"{len(bits)} bytes")
    return frozenset(index for index in range(size) if value >> index & 1)


class BoundedFields:
    """Codec of flat messages like those of :mod:`skerry_contract.campaign`; each class lists all its bounds."""

    #: Field name to the lowest and highest number, or the fewest and most bytes or characters.
    BOUNDS: ClassVar[Mapping[str, tuple[float, float]]]

    def to_fields(self) -> dict[str, Scalar]:
        """The message as a flat mapping."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """Read and check a message.

        Raises:
            WireError: A field is missing, of another type or out of bounds. Unknown fields are ignored.
        """
        checked: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # subclasses are dataclasses
            name, kind = field.name, str(field.type)
            if name not in values:
                raise WireError(name, expected="a value", got="nothing")
            value = values[name]
            if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if type(value).__name__ != kind:
                raise WireError(name, expected=kind, got=type(value).__name__)
            low, high = cls.BOUNDS[name]
            size = value if isinstance(value, int | float) else len(value)
            if not low <= size <= high:
                unit = {"bytes": " bytes", "str": " characters"}.get(kind, "")
                raise WireError(name, expected=f"{low:g} to {high:g}{unit}", got=size)
            if name in ("device_id", "campaign_id"):
                check_name(value, field=name)
            checked[name] = value
        return cls(**checked)
