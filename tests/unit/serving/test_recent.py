"""The ring of answered requests: bounded in rows and in bytes."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from skerry_agent.serving.recent import LARGE_BYTES, WAITING, AnsweredRequest, RecentRequests


def request(rows: int = 1, elements: int = 4) -> AnsweredRequest:
    x = np.zeros((rows, elements), dtype=np.float32)
    return AnsweredRequest(x, np.ones((rows, 1), dtype=np.float32), ("a",), "r1")


def test_the_oldest_go_when_there_are_too_many_rows() -> None:
    recent = RecentRequests(row_limit=5, byte_limit=1 << 20)
    recent.add("one", request(2))
    recent.add("two", request(3))
    assert recent.find("one") is not None
    recent.add("three", request(1))
    assert recent.find("one") is None
    assert [recent.find(i) is not None for i in ("two", "three")] == [True, True]


def test_bytes_are_bounded_too() -> None:
    recent = RecentRequests(row_limit=1000, byte_limit=100)
    for index in range(10):
        recent.add(str(index), request(1, elements=10))  # 40 bytes
    assert len(recent) == 2
    assert recent.find("9") is not None


def test_a_request_larger_than_the_ring_is_not_remembered() -> None:
    recent = RecentRequests(row_limit=5, byte_limit=1 << 20)
    recent.add("one", request(1))
    recent.add("big", request(6))
    assert len(recent) == 0


def test_a_reused_id_names_the_newest() -> None:
    recent = RecentRequests(row_limit=5, byte_limit=1 << 20)
    first, second = request(2), request(3)
    recent.add("same", first)
    recent.add("same", second)
    assert recent.find("same") is second
    recent.add("other", request(2))
    assert len(recent) == 2


def test_what_waits_to_be_put_in_order_is_bounded() -> None:
    """Nobody asks for a label, and still no more inputs are held than the limits and what may wait."""
    recent = RecentRequests(row_limit=3, byte_limit=1 << 20)
    held = []
    for index in range(500):
        one = request()
        held.append(weakref.ref(one.x))
        recent.add(str(index), one)
        del one
    assert sum(reference() is not None for reference in held) <= 3 + WAITING
    large = [request(1, elements=LARGE_BYTES) for _ in range(5)]
    references = [weakref.ref(one.x) for one in large]
    for index, one in enumerate(large):
        recent.add(f"large {index}", one)
    del large, one
    assert sum(reference() is not None for reference in references) <= 3


def test_under_threads_nothing_is_lost() -> None:
    recent = RecentRequests(row_limit=100_000, byte_limit=1 << 20)

    def add(name: int) -> None:
        for index in range(2000):
            recent.add(f"{name}/{index}", request())

    threads = [threading.Thread(target=add, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(recent) == 8000
