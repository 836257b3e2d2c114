"""Which chunks of a file are missing: one bit a chunk, least significant bit first."""

from __future__ import annotations

from collections.abc import Iterable

from skerry_contract.errors import WireError


def encode_bitmap(indices: Iterable[int], count: int) -> bytes:
    """Bitmap of ``count`` bits with the given bits set.

    Raises:
        ValueError: An index outside 0 to ``count`` - 1.
    """
    bits = bytearray(-(-count // 8))
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"chunk {index} is outside 0 to {count - 1}")
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def decode_bitmap(data: bytes, count: int, *, field: str = "missing_bitmap") -> list[int]:
    """Indices of the set bits, ascending.

    Raises:
        WireError: Another length than ``count`` asks for, or a bit set beyond it.
    """
    if len(data) != -(-count // 8):
        raise WireError(field, expected=f"{-(-count // 8)} bytes for {count} chunks", got=f"{len(data)} bytes")
    indices = [byte * 8 + bit for byte, value in enumerate(data) if value for bit in range(8) if value >> bit & 1]
    if indices and indices[-1] >= count:
        raise WireError(field, expected=f"bits below {count}", got=f"bit {indices[-1]}")
    return indices
