"""What a message of a topic holds: a row or samples, as JSON or as bare numbers (pure).

A payload that is a JSON object has ``{"values": [...], "id": "...", "at_ms": ...}``, the last two optional and other
names ignored; any other payload is little-endian float32. Nothing in it is trusted: size, types and numbers are bounded
here; shape by the model's own, NaN and ranges by the serving process, which says what was wrong with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import InputError

Floats = npt.NDArray[np.float32]
#: Longest id of a row (bytes of UTF-8): what the serving process keeps for labels.
ID_BYTES = 128
#: Largest message (bytes), whatever the model takes.
PAYLOAD_BYTES = 8 << 20
#: Characters of JSON that one number may take.
NUMBER_CHARACTERS = 32
#: Most samples of one message.
MESSAGE_SAMPLES = 65_536
#: Latest moment that is believed (ms since 1970): the year 2262, where nanoseconds in 64 bits end.
LATEST_MS = 9.2e15 / 1000


@dataclass(frozen=True)
class Payload:
    """A message that holds numbers.

    Attributes:
        values: float32: one row of the model's shape, or samples [n, channels].
        id: Of the row; empty if it has none.
        at_ms: When the row, or the first sample, was taken (ms since 1970); None if that is not said.
    """

    values: Floats
    id: str
    at_ms: float | None


def payload_limit(numbers: int) -> int:
    """Largest message (bytes) that can hold ``numbers`` numbers."""
    return min(PAYLOAD_BYTES, 1024 + numbers * NUMBER_CHARACTERS)


def read_row(data: bytes, shape: tuple[int, ...]) -> Payload:
    """One row of a shape, nested or flat.

    Raises:
        InputError: It holds none.
    """
    count = math.prod(shape)

    def fit(values: Floats) -> Floats:
        if values.shape != shape and values.shape != (count,):
            raise InputError("values", expected=f"{list(shape)} or {count} numbers", got=list(values.shape))
        return values.reshape(shape)

    return _read(data, payload_limit(count), fit)


def read_samples(data: bytes, channels: int) -> Payload:
    """Samples [n, channels] with n of 1 or more, oldest first; ``channels`` flat numbers are one.

    Raises:
        InputError: It holds none.
    """

    def fit(values: Floats) -> Floats:
        if values.ndim == 1 and values.size and values.size % channels == 0:
            values = values.reshape(-1, channels)
        if values.ndim != 2 or values.shape[1] != channels or not 1 <= len(values) <= MESSAGE_SAMPLES:
            raise InputError(
                "values", expected=f"[n, {channels}] with 1 to {MESSAGE_SAMPLES} samples", got=list(values.shape)
            )
        return values

    return _read(data, payload_limit(channels * MESSAGE_SAMPLES), fit)


def _read(data: bytes, limit: int, fit: Callable[[Floats], Floats]) -> Payload:
    if not 0 < len(data) <= limit:
        raise InputError("payload", expected=f"1 to {limit} bytes", got=len(data))
    if data[:1] == b"{":
        document = _object(data)
        if document is not None:
            return Payload(fit(_numbers(document.get("values"))), _id(document), _at_ms(document))
    if len(data) % 4:
        raise InputError(
            "payload", expected="a JSON object, or float32 numbers of 4 bytes each", got=f"{len(data)} bytes"
        )
    return Payload(fit(np.frombuffer(data, dtype="<f4").astype(np.float32)), "", None)


def id_of(data: bytes) -> str:
    """The id of a payload that is refused, so that its sender can be told; empty if there is none to be found."""
    document = _object(data) if data[:1] == b"{" and len(data) <= PAYLOAD_BYTES else None
    try:
        return "" if document is None else _id(document)
    except InputError:
        return ""


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _numbers(values: object) -> Floats:
    if not isinstance(values, list):
        raise InputError("values", expected="a list of numbers", got=type(values).__name__)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise InputError("values", expected="lists of the same length", got="others") from error
    if array.dtype.kind not in "fiu":
        raise InputError("values", expected="numbers", got="something else" if array.size else "nothing")
    # Beyond float32 becomes infinite here, and the serving process refuses that.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _id(document: dict[str, Any]) -> str:
    value = document.get("id", "")
    try:
        if isinstance(value, str) and len(value.encode()) <= ID_BYTES:
            return value
    except UnicodeEncodeError:
        pass
    raise InputError("id", expected=f"a text of at most {ID_BYTES} bytes", got=type(value).__name__)


def _at_ms(document: dict[str, Any]) -> float | None:
    value = document.get("at_ms")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LATEST_MS:
        raise InputError("at_ms", expected="milliseconds since 1970", got=type(value).__name__)
    return float(value)
