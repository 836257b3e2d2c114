"""The ``Range`` of an HTTP request (RFC 9110, section 14): one range of bytes, or none. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Longest header that is looked at (characters), and most digits of a position.
_HEADER_CHARACTERS = 100
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")


class UnsatisfiableError(Exception):
    """The range lies outside the file, or is not a single one."""


@dataclass(frozen=True)
class ByteRange:
    """Some bytes of a file.

    Attributes:
        first: Position of the first.
        length: How many; may be 0 for an empty file.
        partial: Whether a range was asked for.
    """

    first: int
    length: int
    partial: bool

    def content_range(self, size: int) -> str:
        """Value of ``Content-Range`` for a file of ``size`` bytes."""
        return f"bytes {self.first}-{self.first + self.length - 1}/{size}"


def parse_range(header: str | None, size: int) -> ByteRange:
    """What of a file of ``size`` bytes is asked for; a unit that is not known asks for all of it.

    Raises:
        UnsatisfiableError: Nothing of the file is in the range, or there are several, or it cannot be read.

    >>> parse_range("bytes=2-", 10), parse_range("bytes=-3", 10)
    (ByteRange(first=2, length=8, partial=True), ByteRange(first=7, length=3, partial=True))
    """
    if header is None or not header.startswith("bytes="):
        return ByteRange(0, size, False)
    found = _RANGE.match(header) if len(header) <= _HEADER_CHARACTERS else None
    if found is None or found[0] == "bytes=-":
        raise UnsatisfiableError("one range is served, such as bytes=0-1023")
    if not found[1]:
        first = max(0, size - int(found[2]))
        end = size
    else:
        first = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
    if first >= end:
        raise UnsatisfiableError(f"the file has {size} bytes")
    return ByteRange(first, end - first, True)
