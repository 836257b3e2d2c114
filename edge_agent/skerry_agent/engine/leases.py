"""Swapping a model while it answers: the old one is closed when the last request that uses it is done.

A request takes a lease, uses the value, and gives the lease back. A swap is one assignment; nobody waits.

Requests take no lock. A request first signs in at the lease and then looks whether the lease is still the current one;
a swap first makes another lease current and then looks whether anybody has signed in. So either the swap sees the
request, or the request sees the swap, signs out and takes the new value. Appending to a deque and popping from it are
single steps for other threads (collections.deque).
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lease(Generic[T]):
    """Right to use a value until it is given back (:meth:`Swappable.give_back`). Made by :class:`Swappable`.

    Attributes:
        value: What was current when the lease was taken.
        users: One entry for each request that holds the lease.
        retired: Whether another value is current.
        closing: Whether somebody is closing the value; changed under the lock of its owner.
    """

    __slots__ = ("closing", "retired", "users", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.users: collections.deque[None] = collections.deque()
        self.retired = False
        self.closing = False


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
        while (lease := self._current) is not None:
            lease.users.append(None)
            if lease is self._current:
                return lease
            self.give_back(lease)
        return None

    def give_back(self, lease: Lease[T]) -> None:
        """The value is not used any more; the last user of a retired one closes it."""
        lease.users.pop()
        if lease.retired:
            self._close_unused(lease)

    def replace(self, value: T | None) -> None:
        """Make ``value`` current; the one before is closed as soon as nobody uses it."""
        fresh = None if value is None else Lease(value)
        with self._lock:
            self._open += fresh is not None
            old, self._current = self._current, fresh
        if old is not None:
            old.retired = True
            self._close_unused(old)

    def drain(self, timeout: float) -> bool:
        """Make nothing current and wait until every value is closed; False if that takes longer than ``timeout`` s."""
        self.replace(None)
        with self._lock:
            return self._closed_one.wait_for(lambda: self._open == 0, timeout)

    def _close_unused(self, lease: Lease[T]) -> None:
        """Close a retired value unless it is used, or another thread was here first."""
        with self._lock:
            if lease.users or lease.closing:
                return
            lease.closing = True
        try:
            self._close(lease.value)
        finally:
            with self._lock:
                self._open -= 1
                self._closed_one.notify_all()
