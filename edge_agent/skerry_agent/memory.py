"""Keeps what is resident, and locked, to what is in use: bounds the allocator, gives back what work has left behind.

Loading a release takes many times the memory that it keeps, and starting a process runs code that nobody needs again:
of the 60 MB of libraries that serving maps, answers use a fifth. The kernel would take both back when memory is short;
then answers would wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
from pathlib import Path

_MADV_DONTNEED = 4
_MLOCK_ONFAULT = 1
_M_ARENA_MAX = -8
#: Enough for doors that hold the interpreter's lock.
ARENAS = 2
_MAPS = Path("/proc/self/maps")


def bound_arenas() -> bool:
    """Bound the memory that the allocator keeps; returns whether this C library knows arenas.

    glibc gives each thread that allocates at the same time as another an arena of its own (mallopt(3)). Remembered
    inputs are made by the thread of one door and dropped by that of another, so every arena would keep room for all of
    them: with inputs of 600 kB that is 60 MB. To be called before the first thread is started.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS))
    except (AttributeError, OSError):
        return False


def give_memory_back() -> None:
    """Collect garbage, and hand the free pages of the C heap to the system (malloc_trim(3), where there is glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def forget_code() -> None:
    """Unmap the code of libraries (madvise(2)); what is used again comes back page by page, from the page cache.

    Only code is touched: those pages are mapped read-only from files and were never written, so nothing can be lost.
    Code that is locked in memory is locked again, page by page as it comes back (mlock2(2)).
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):
        library = ctypes.CDLL(None, use_errno=True)
        forget, unlock, lock = library.madvise, library.munlock, library.mlock2
        forget.argtypes = lock.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        unlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        for start, end in _code(_MAPS.read_text()):
            if forget(start, end - start, _MADV_DONTNEED) != 0 and ctypes.get_errno() == errno.EINVAL:
                unlock(start, end - start)
                forget(start, end - start, _MADV_DONTNEED)
                lock(start, end - start, _MLOCK_ONFAULT)


def _code(maps: str) -> list[tuple[int, int]]:
    """Address ranges of executable, private, read-only mappings of files, from /proc/self/maps (proc(5)).

    >>> _code("7f00-7f10 r-xp 0 08:01 42 /lib/a.so\\n7f10-7f20 rw-p 0 08:01 42 /lib/a.so\\n8f00-8f10 r-xp 0 0 0 [vdso]")
    [(32512, 32528)]
    """
    ranges = []
    for line in maps.splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "r-xp" and fields[5].startswith("/"):
            start, end = fields[0].split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges
