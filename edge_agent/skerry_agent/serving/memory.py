"""Bounds the memory that the allocator keeps.

glibc gives each thread that allocates at the same time as another an arena of its own (mallopt(3)). Remembered inputs
are made by the thread of one door and dropped by that of another, so every arena would keep room for all of them:
with inputs of 600 kB that is 60 MB. Two arenas are enough for doors that hold the interpreter's lock.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
ARENAS = 2


def bound_arenas() -> bool:
    """Call it before the first thread is started; returns whether this C library knows arenas."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS))
    except (AttributeError, OSError):
        return False
