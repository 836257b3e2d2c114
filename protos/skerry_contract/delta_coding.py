"""Entropy coding of the streams of a delta: raw, zstd, zstd with part of the base as its dictionary, or rANS.

The rANS coder is the range variant of asymmetric numeral systems (Duda, arXiv:1311.2540) with order-0 statistics,
32-bit states, 16-bit words and many interleaved states (Giesen, arXiv:1402.3392): symbol i belongs to lane
``i mod lanes``, so that one NumPy operation works on all lanes. It stays within a few per cent of the entropy where
zstd's matches find nothing, and needs no compiled code on the device.

Invariants: how long a stream is when decoded is known before, from what surrounds it; nothing larger than that is
allocated; the number of lanes follows from the length, so that no stream can ask for slow work. Whatever does not
decode is a :class:`~skerry_contract.errors.WireError`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import zstandard

from skerry_contract.errors import WireError

Bytes = npt.NDArray[np.uint8]
#: What a stream is read from.
Buffer = bytes | memoryview

#: Largest zstd window that is accepted (bytes).
WINDOW_BYTES = 8 << 20
#: Precision of the rANS frequencies: they add up to 2 ** 14.
_BITS = 14
_TOTAL = 1 << _BITS
#: Between symbols every state lies in [_LOWER, _LOWER << 16).
_LOWER = 1 << 16
_LEVEL = 19


class Coding(enum.IntEnum):
    """How the bytes of a stream are written."""

    RAW = 0
    ZSTD = 1
    #: zstd with bytes of the base as raw dictionary.
    ZSTD_BASE = 2
    RANS = 3


def encode_stream(data: bytes, dictionary: bytes = b"") -> tuple[Coding, bytes]:
    """Write ``data`` in every way and keep the smallest; on a tie the one that is quickest to read.

    Args:
        data: At least one byte.
        dictionary: Bytes that the reader has too; empty for none.
    """
    forms = [(Coding.RAW, data), (Coding.ZSTD, compress(data)), (Coding.RANS, encode_rans(data))]
    if dictionary:
        forms.append((Coding.ZSTD_BASE, compress(data, dictionary)))
    return min(forms, key=lambda form: (len(form[1]), form[0]))


def decode_stream(
    coding: int, payload: Buffer, size: int, *, field: str, dictionary: Callable[[], bytes] = lambda: b""
) -> Bytes:
    """Read a stream.

    Args:
        coding: A :class:`Coding`, not trusted.
        payload: As written, not trusted.
        size: Bytes that it must give, at least 1; bounded by the caller.
        field: Name in errors.
        dictionary: Makes the dictionary of ``ZSTD_BASE``; its length is bounded by the caller.

    Returns:
        uint8 [size].

    Raises:
        WireError: An unknown coding, or a payload that is not exactly such a stream.
    """
    if coding == Coding.RAW:
        if len(payload) != size:
            raise WireError(field, expected=f"{size} bytes", got=f"{len(payload)} bytes")
        return np.frombuffer(payload, dtype=np.uint8)
    if coding == Coding.ZSTD:
        return np.frombuffer(decompress(payload, size, field=field), dtype=np.uint8)
    if coding == Coding.ZSTD_BASE:
        return np.frombuffer(decompress(payload, size, field=field, dictionary=dictionary()), dtype=np.uint8)
    if coding == Coding.RANS:
        return decode_rans(payload, size, field=field)
    raise WireError(f"{field}.coding", expected=f"0 to {max(Coding)}", got=coding)


def compress(data: bytes, dictionary: bytes = b"") -> bytes:
    """One zstd frame with its content size, without checksum; ``dictionary`` is raw content."""
    if not dictionary:
        return zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    # The window must reach back over the whole dictionary from the last byte.
    window_log = min(max((len(data) + len(dictionary)).bit_length(), 10), WINDOW_BYTES.bit_length() - 1)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=len(data), dict_size=len(dictionary), window_log=window_log
    )
    raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=raw, compression_params=parameters).compress(data)


def decompress(payload: Buffer, size: int, *, field: str, dictionary: bytes = b"") -> bytes:
    """Read one zstd frame that must give exactly ``size`` bytes; raises WireError."""
    raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    try:
        # What the frame says is checked first: the library allocates what it promises.
        promised = zstandard.frame_content_size(payload)
        if promised != size:
            raise WireError(field, expected=f"a frame of {size} bytes", got=f"{promised} bytes")
        reader = zstandard.ZstdDecompressor(dict_data=raw, max_window_size=WINDOW_BYTES)
        data = reader.decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(field, expected="a zstd frame", got=str(error)) from error
    if len(data) != size:
        raise WireError(field, expected=f"{size} bytes", got=f"{len(data)} bytes")
    return data


def lanes_for(size: int) -> int:
    """Interleaved states for ``size`` symbols: more are quicker, each costs about two bytes."""
    return 1 << max(2, size.bit_length() * 2 // 3 - 5)


def encode_rans(data: bytes) -> bytes:
    """Write order-0 rANS: number of symbols - 1, symbols, their frequencies (uint16), states (uint32), words (uint16).

    All integers are little-endian; ``data`` has at least one byte.
    """
    symbols = np.frombuffer(data, dtype=np.uint8)
    frequencies = _normalise(np.bincount(symbols, minlength=256))
    starts = np.cumsum(frequencies) - frequencies
    lanes = lanes_for(len(symbols))
    states = np.full(lanes, _LOWER, dtype=np.uint64)
    wide, offsets = frequencies.astype(np.uint64), starts.astype(np.uint64)
    limits = wide << np.uint64(32 - _BITS)
    words: list[npt.NDArray[np.uint16]] = []
    # Last symbol first: the reader gets them back in order, from words in reverse.
    for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        row = symbols[start : start + lanes]
        active = states[: len(row)]
        full = active >= limits[row]
        if full.any():
            words.append(active[full].astype(np.uint16)[::-1])
            active[full] >>= np.uint64(16)
        share = wide[row]
        active[:] = ((active // share) << np.uint64(_BITS)) + active % share + offsets[row]
    used = np.flatnonzero(frequencies)
    stream = np.concatenate(words)[::-1] if words else np.empty(0, dtype=np.uint16)
    return b"".join(
        (
            bytes([len(used) - 1]),
            used.astype(np.uint8).tobytes(),
            frequencies[used].astype("<u2").tobytes(),
            states.astype("<u4").tobytes(),
            stream.astype("<u2").tobytes(),
        )
    )


def decode_rans(payload: Buffer, size: int, *, field: str) -> Bytes:
    """Read what :func:`encode_rans` wrote; uint8 [size]; raises WireError."""
    lanes = lanes_for(size)
    used = payload[0] + 1 if len(payload) else 0
    head = 1 + used + 2 * used
    if not used or len(payload) < head + 4 * lanes or (len(payload) - head) % 2:
        raise WireError(field, expected="a table, states and whole words", got=f"{len(payload)} bytes")
    symbols = np.frombuffer(payload, dtype=np.uint8, count=used, offset=1)
    frequencies = np.frombuffer(payload, dtype="<u2", count=used, offset=1 + used).astype(np.uint32)
    if (np.diff(symbols.astype(np.int16)) <= 0).any() or not frequencies.all() or int(frequencies.sum()) != _TOTAL:
        raise WireError(f"{field}.table", expected=f"ascending symbols with frequencies of {_TOTAL}", got="others")
    states = np.frombuffer(payload, dtype="<u4", count=lanes, offset=head).astype(np.uint32)
    if (states < _LOWER).any():
        raise WireError(f"{field}.states", expected=f"at least {_LOWER}", got=int(states.min()))
    words = np.frombuffer(payload, dtype="<u2", offset=head + 4 * lanes).astype(np.uint32)

    symbol_at = np.repeat(symbols, frequencies)
    share_at = np.repeat(frequencies, frequencies)
    starts = np.repeat(np.cumsum(frequencies, dtype=np.uint32) - frequencies, frequencies)
    offset_at = np.arange(_TOTAL, dtype=np.uint32) - starts
    out = np.empty(size, dtype=np.uint8)
    mask, bits, sixteen = np.uint32(_TOTAL - 1), np.uint32(_BITS), np.uint32(16)
    position = 0
    for start in range(0, size, lanes):
        row = out[start : start + lanes]
        active = states[: len(row)]
        slot = active & mask
        np.take(symbol_at, slot, out=row)
        active >>= bits
        active *= share_at[slot]
        active += offset_at[slot]
        empty = np.flatnonzero(active < _LOWER)
        if len(empty):
            fresh = words[position : position + len(empty)]
            if len(fresh) != len(empty):
                raise WireError(field, expected="more words", got=f"{len(words)}")
            active[empty] = (active[empty] << sixteen) | fresh
            position += len(empty)
    if position != len(words) or (states != _LOWER).any():
        raise WireError(field, expected="a stream that ends with its symbols", got=f"{len(words)} words")
    return out


def _normalise(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Frequencies that add up to 2 ** 14, at least 1 for what occurs, as near to the counts as they can be."""
    total = int(counts.sum())
    shares = np.where(counts > 0, np.maximum(counts * _TOTAL // total, 1), 0)
    while (excess := int(shares.sum()) - _TOTAL) > 0:
        # Rare symbols were rounded up: the common ones give, in proportion, and never below 1.
        largest = int(np.argmax(shares))
        shares[largest] -= min(excess, max(int(shares[largest]) // 4, 1))
    missing = _TOTAL - int(shares.sum())
    if missing:
        remainders = np.where(counts > 0, counts * _TOTAL - shares * total, -1)
        order = np.argsort(-remainders, kind="stable")[: int((counts > 0).sum())]
        shares[order] += missing // len(order)
        shares[order[: missing % len(order)]] += 1
    return shares
