"""Leases: an old value is closed exactly once, and not while somebody uses it."""

from __future__ import annotations

import threading

from skerry_agent.engine.leases import Swappable


def test_an_unused_value_is_closed_when_it_is_replaced() -> None:
    closed: list[str] = []
    swappable: Swappable[str] = Swappable(closed.append)
    swappable.replace("one")
    assert swappable.current == "one"
    swappable.replace("two")
    assert closed == ["one"]


def test_a_used_value_is_closed_by_its_last_user() -> None:
    closed: list[str] = []
    swappable: Swappable[str] = Swappable(closed.append)
    swappable.replace("one")
    first, second = swappable.acquire(), swappable.acquire()
    assert first is not None
    assert second is not None
    swappable.replace("two")
    third = swappable.acquire()
    assert third is not None
    assert (first.value, third.value) == ("one", "two")
    swappable.give_back(first)
    assert closed == []
    swappable.give_back(second)
    assert closed == ["one"]
    swappable.give_back(third)
    assert closed == ["one"]
    swappable.replace(None)
    assert closed == ["one", "two"]


def test_nothing_to_lease() -> None:
    swappable: Swappable[str] = Swappable(lambda _: None)
    assert swappable.acquire() is None
    assert swappable.current is None


def test_under_threads_every_value_is_closed_once_and_never_in_use() -> None:
    class Value:
        def __init__(self) -> None:
            self.closed = 0

    values = [Value() for _ in range(60)]
    used_closed: list[Value] = []
    swappable: Swappable[Value] = Swappable(lambda value: setattr(value, "closed", value.closed + 1))
    swappable.replace(values[0])
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            lease = swappable.acquire()
            assert lease is not None
            if lease.value.closed:
                used_closed.append(lease.value)
            swappable.give_back(lease)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for value in values[1:]:
        swappable.replace(value)
    done.set()
    for thread in threads:
        thread.join(20)
    swappable.replace(None)
    assert not used_closed
    assert [value.closed for value in values] == [1] * 60


def test_drain_waits_for_the_last_user() -> None:
    closed: list[str] = []
    swappable: Swappable[str] = Swappable(closed.append)
    swappable.replace("one")
    lease = swappable.acquire()
    assert lease is not None
    swappable.replace("two")
    assert not swappable.drain(0.01)
    assert closed == ["two"]
    release = threading.Timer(0.05, swappable.give_back, (lease,))
    release.start()
    assert swappable.drain(20)
    assert closed == ["two", "one"]
    release.join()
