"""Who stays when the queue is full."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from skerry_agent.stream.rows import TOLD, Keep, Refusal, Row, RowQueue


def row(name: str) -> Row:
    return Row(np.zeros((1, 1), np.float32), name, 0.0)


def names(queue: RowQueue) -> list[str]:
    found = []
    while (item := queue.take(0)) is not None:
        found.append(item.id)
    return found


@pytest.mark.parametrize(("keep", "expected"), [("newest", ["c", "d"]), ("oldest", ["a", "b"])])
def test_more_rows_than_room(keep: Keep, expected: list[str]) -> None:
    queue = RowQueue(2, keep=keep)
    for name in "abcd":
        queue.put(row(name))
    assert queue.waiting == 2
    assert (names(queue), queue.dropped) == (expected, 2)


@pytest.mark.parametrize(
    ("keep", "expected", "dropped"), [("newest", ["b", "c"], 1), ("oldest", ["a", "b"], 1), ("all", ["a", "b", "c"], 0)]
)
def test_a_row_comes_back_to_a_full_queue(keep: Keep, expected: list[str], dropped: int) -> None:
    queue = RowQueue(2, keep=keep)
    queue.put(row("a"))
    taken = queue.take(0)
    assert isinstance(taken, Row)
    queue.put(row("b"))
    queue.put(row("c"))
    queue.give_back(taken)
    assert (names(queue), queue.dropped) == (expected, dropped)


def test_with_room_it_comes_back_to_the_front() -> None:
    queue = RowQueue(3, keep="newest")
    queue.put(row("a"))
    taken = queue.take(0)
    assert isinstance(taken, Row)
    queue.put(row("b"))
    queue.give_back(taken)
    assert (names(queue), queue.dropped) == (["a", "b"], 0)


def test_a_source_that_keeps_all_waits_for_room_and_not_beyond_the_end() -> None:
    queue = RowQueue(1, keep="all")

    def feed() -> None:
        for name in "abcd":
            queue.put(row(name))

    source = threading.Thread(target=feed)
    source.start()
    taken = [queue.take(10) for _ in range(3)]
    assert [item.id for item in taken if item] == ["a", "b", "c"]
    source.join(10)
    assert (queue.waiting, queue.dropped) == (1, 0)  # d has taken the room
    late = threading.Thread(target=lambda: queue.put(row("e")))
    late.start()
    queue.close()
    late.join(10)
    assert not late.is_alive()
    assert (names(queue), queue.dropped) == (["d"], 1)


def test_garbage_displaces_no_row_and_is_bounded() -> None:
    queue = RowQueue(1, keep="newest")
    queue.put(row("a"))
    for number in range(TOLD + 5):
        queue.tell(Refusal(f"bad-{number}", "no", 0.0))
    assert (queue.untold, queue.dropped) == (5, 0)
    assert names(queue)[-1] == "a"


def test_an_end_is_one_when_everything_was_taken() -> None:
    queue = RowQueue(2, keep="newest")
    queue.put(row("a"))
    queue.close()
    queue.put(row("b"))
    seen = [queue.ended, names(queue), queue.ended]
    assert seen == [False, ["a"], True]
    assert queue.take(60) is None  # at once
    assert queue.dropped == 1


def test_a_queue_has_room() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        RowQueue(0, keep="all")
