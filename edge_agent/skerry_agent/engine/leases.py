"""Swapping a model while it answers: the old one is closed when the last request that uses it is done.

A request takes a lease, uses the value, and gives the lease back. A swap is one assignment; nobody waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lease(Generic[T]):
    """Right to use a value until :meth:`release`. Made by :class:`Swappable`.

    Attributes:
        value: What was current when the lease was taken.
        users: How many hold the lease; changed under the lock.
        retired: Whether another value is current; changed under the lock.
    """

    __slots__ = ("_close", "_lock", "retired", "users", "value")

    def __init__(self, value: T, close: Callable[[T], None], lock: threading.Lock) -> None:
        self.value = value
        self.users = 0
        self.retired = False
        self._close = close
        self._lock = lock

    def release(self) -> None:
        """Give the lease back; the last one of a retired value closes it."""
        with self._lock:
            self.users -= 1
            last = self.retired and self.users == 0
        if last:
            self._close(self.value)


class Swappable(Generic[T]):
    """A current value that can be replaced under load.

    Args:
        close: Called once for each replaced value, on the thread that used it last.
    """

    def __init__(self, close: Callable[[T], None]) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._current: Lease[T] | None = None

    @property
    def current(self) -> T | None:
        """The current value, for reading what needs no lease (names, specifications)."""
        lease = self._current
        return None if lease is None else lease.value

    def acquire(self) -> Lease[T] | None:
        """Take a lease on the current value, or None if there is none."""
        with self._lock:
            lease = self._current
            if lease is not None:
                lease.users += 1
            return lease

    def replace(self, value: T | None) -> None:
        """Make ``value`` current; the one before is closed as soon as nobody uses it."""
        fresh = None if value is None else Lease(value, self._close, self._lock)
        with self._lock:
            old, self._current = self._current, fresh
            if old is None:
                return
            old.retired = True
            idle = old.users == 0
        if idle:
            self._close(old.value)
