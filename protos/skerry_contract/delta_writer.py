"""Writes deltas: for every stretch the cheapest of copying, subtracting and writing out, by measured size.

Subtraction wants to know which bytes of both files are the same tensor: :class:`Match`. Everything between matches is
copied where it is the same and written out, against the base as a dictionary, where it is not. A file that is no model
is written with no match at all, which is what ``zstd --patch-from`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skerry_contract.delta import SEGMENT_BYTES, Kind, difference_planes, pack_delta, surroundings
from skerry_contract.delta_coding import encode_stream

#: A stretch that is the same on both sides is worth a segment of its own from here on (bytes).
_WORTH_COPYING = 32


@dataclass(frozen=True)
class Match:
    """A tensor that both files have.

    Attributes:
        target: Where it begins in the target (bytes).
        base: Where it begins in the base.
        length: Its bytes, the same in both.
        width: Bytes of an element: 1 (int8, uint8) or 4 (float32, int32).
    """

    target: int
    base: int
    length: int
    width: int


def write_delta(base: bytes, target: bytes, matches: Sequence[Match] = ()) -> bytes:
    """The smallest delta that these matches allow.

    Args:
        base: What the device has.
        target: What it is to have.
        matches: Tensors of both; they do not overlap in the target.

    Raises:
        ValueError: A match that lies outside a file, overlaps another, or whose length is no multiple of its width.
    """
    ordered = sorted(matches, key=lambda match: match.target)
    _check(ordered, len(base), len(target))
    writer = _Writer(base, target)
    end = Match(len(target), len(base), 0, 1)
    position, base_position = 0, 0
    for match in [*ordered, end]:
        writer.gap(position, match.target, base_position, match.base)
        writer.tensor(match)
        position, base_position = match.target + match.length, match.base + match.length
    return pack_delta(writer.segments, writer.streams, base=base, target=target)


def _check(matches: Sequence[Match], base_size: int, target_size: int) -> None:
    end = 0
    for match in matches:
        if match.width not in (1, 4) or match.length < 0 or match.length % match.width:
            raise ValueError(f"{match}: a length of whole elements of 1 or 4 bytes")
        if match.target < end or match.target + match.length > target_size:
            raise ValueError(f"{match}: overlaps, or lies outside the target of {target_size} bytes")
        if match.base < 0 or match.base + match.length > base_size:
            raise ValueError(f"{match}: lies outside the base of {base_size} bytes")
        end = match.target + match.length


class _Writer:
    """Collects segments and streams from the first byte of the target to the last."""

    def __init__(self, base: bytes, target: bytes) -> None:
        self._base = base
        self._target = target
        self.segments: list[tuple[Kind, int, int]] = []
        self.streams: list[tuple[int, bytes]] = []

    def gap(self, start: int, stop: int, base_start: int, base_stop: int) -> None:
        """Bytes of no tensor: what they share with the base at both ends is copied, the rest written out."""
        length = stop - start
        room = min(length, base_stop - base_start) if base_stop > base_start else 0
        head = _common(self._target[start : start + room], self._base[base_start : base_start + room])
        rest = room - head
        tail = _common(self._target[stop - rest : stop][::-1], self._base[base_stop - rest : base_stop][::-1])
        # A gap that is the same throughout is copied however short it is: it joins the copies around it.
        if head != length:
            head = head if head >= _WORTH_COPYING else 0
            tail = tail if tail >= _WORTH_COPYING else 0
        self._copy(base_start, head)
        self._literal(start + head, stop - tail, base_start + head)
        self._copy(base_stop - tail, tail)

    def tensor(self, match: Match) -> None:
        """A tensor: copied, subtracted or written out, in segments."""
        for offset in range(0, match.length, SEGMENT_BYTES):
            length = min(SEGMENT_BYTES, match.length - offset)
            start, base_start = match.target + offset, match.base + offset
            new, old = self._target[start : start + length], self._base[base_start : base_start + length]
            if new == old:
                self._copy(base_start, length)
                continue
            if match.width == 4:
                kind, parts = Kind.WORDS, difference_planes(old, new)
            else:
                difference = np.frombuffer(new, dtype=np.uint8) - np.frombuffer(old, dtype=np.uint8)
                kind, parts = Kind.BYTES, [difference.tobytes()]
            streams = [encode_stream(part) for part in parts]
            literal = encode_stream(new, surroundings(self._base, base_start, length))
            if len(literal[1]) <= sum(len(payload) for _, payload in streams):
                kind, streams = Kind.LITERAL, [literal]
            self.segments.append((kind, length, base_start))
            self.streams += streams

    def _copy(self, start: int, length: int) -> None:
        """Copy; goes on with a copy that ends here."""
        if length and self.segments:
            kind, before, where = self.segments[-1]
            room = SEGMENT_BYTES - before
            if kind is Kind.COPY and where + before == start and room:
                grown = min(room, length)
                self.segments[-1] = (kind, before + grown, where)
                start, length = start + grown, length - grown
        for offset in range(0, length, SEGMENT_BYTES):
            self.segments.append((Kind.COPY, min(SEGMENT_BYTES, length - offset), start + offset))

    def _literal(self, start: int, stop: int, base_start: int) -> None:
        for place in range(start, stop, SEGMENT_BYTES):
            length = min(SEGMENT_BYTES, stop - place)
            near = min(base_start + place - start, len(self._base))
            self.segments.append((Kind.LITERAL, length, near))
            self.streams.append(
                encode_stream(self._target[place : place + length], surroundings(self._base, near, length))
            )


def _common(first: bytes, second: bytes) -> int:
    """Number of equal bytes at the beginning."""
    size = min(len(first), len(second))
    different = np.flatnonzero(
        np.frombuffer(first, dtype=np.uint8, count=size) != np.frombuffer(second, dtype=np.uint8, count=size)
    )
    return int(different[0]) if len(different) else size


def order0_bits(data: bytes) -> float:
    """Order-0 entropy of ``data``: the fewest bits that a code of single bytes can take."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    shares = counts[counts > 0] / max(len(data), 1)
    return float(-(shares * np.log2(shares)).sum() * len(data))
