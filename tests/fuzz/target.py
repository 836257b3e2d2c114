"""What is fuzzed: a parser of bytes from the wire, and what it may answer to any bytes at all."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

#: Memory that a parser may take for any input (bytes), beside a multiple of the input's size.
FLOOR = 4 << 20
FACTOR = 64


class BrokenPromiseError(AssertionError):
    """A parser raised what it must not, or took more memory than its input explains."""


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        name: On the command line.
        parse: Takes bytes; returns, or raises one of ``refuses``.
        seeds: Inputs that are accepted, to start from.
        refuses: Errors that blame the input.
        longest: Bytes that are worth trying.
    """

    name: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refuses: tuple[type[Exception], ...]
    longest: int = 4096

    def try_bytes(self, data: bytes) -> None:
        """Parse; raises BrokenPromiseError for any other error."""
        try:
            self.parse(data)
        except self.refuses:
            return
        except Exception as error:
            raise BrokenPromiseError(f"{self.name}: {type(error).__name__}: {error}: {data!r:.500}") from error

    def try_memory(self, data: bytes) -> None:
        """As :meth:`try_bytes`; raises BrokenPromiseError also for memory out of proportion."""
        tracemalloc.start()
        try:
            self.try_bytes(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if peak > FLOOR + FACTOR * len(data):
            raise BrokenPromiseError(f"{self.name}: {peak} bytes of memory for {len(data)} of input: {data!r:.500}")
