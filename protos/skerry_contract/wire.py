"""Parsing protobuf from the wire with a bound on its size and an error that names what came."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from skerry_contract.errors import WireError
from skerry_contract.limits import MESSAGE_BYTES

M = TypeVar("M", bound=Message)


def parse_message(message_type: type[M], data: bytes, *, limit: int = MESSAGE_BYTES) -> M:
    """Parse ``data`` as ``message_type``.

    Args:
        message_type: Generated class.
        data: Bytes from the wire.
        limit: Largest accepted size in bytes.

    Raises:
        WireError: Too large, or not that message.
    """
    name = message_type.__name__
    if len(data) > limit:
        raise WireError(name, expected=f"at most {limit} bytes", got=f"{len(data)} bytes")
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(name, expected="a protobuf message of that type", got=f"{len(data)} bytes: {error}") from error
    return message


def encode_varint(value: int) -> bytes:
    """Base 128, as protobuf writes tags and lengths (protobuf.dev/programming-guides/encoding); ``value`` >= 0."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
