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
        users: How many hold the lease; changed under the lock of its owner.
        retired: Whether another value is current; changed under the lock of its owner.
    """

    __slots__ = ("_owner", "retired", "users", "value")

    def __init__(self, value: T, owner: Swappable[T]) -> None:
        self.value = value
        self.users = 0
        self.retired = False
        self._owner = owner

    def release(self) -> None:
        """Give the lease back; the last one of a retired value closes it."""
        self._owner.give_back(self)


class Swappable(Generic[T]):
    """A current value that can be replaced under load.

    Args:
        close: Called once for each replaced value, on the thread that used it last.
    """

    def __init__(self, close: Callable[[T], None]) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._closed_one = threading.Condition(self._lock)
        self._open = 0
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

    def give_back(self, lease: Lease[T]) -> None:
        """See :meth:`Lease.release`."""
        with self._lock:
            lease.users -= 1
            last = lease.retired and lease.users == 0
        if last:
            self._finish(lease)

    def replace(self, value: T | None) -> None:
        """Make ``value`` current; the one before is closed as soon as nobody uses it."""
        fresh = None if value is None else Lease(value, self)
        with self._lock:
            self._open += fresh is not None
            old, self._current = self._current, fresh
            if old is None:
                return
            old.retired = True
            idle = old.users == 0
        if idle:
            self._finish(old)

    def drain(self, timeout: float) -> bool:
        """Make nothing current and wait until every value is closed; False if that takes longer than ``timeout`` s."""
        self.replace(None)
        with self._lock:
            return self._closed_one.wait_for(lambda: self._open == 0, timeout)

    def _finish(self, lease: Lease[T]) -> None:
        try:
            self._close(lease.value)
        finally:
            with self._lock:
                self._open -= 1
                self._closed_one.notify_all()
