"""From messages and readings to rows."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest

from skerry_agent.errors import InputError
from skerry_agent.stream.intake import Framing, Intake
from skerry_agent.stream.rows import Refusal, Row, RowQueue


def make(framing: Framing, shape: tuple[int, ...] = (2, 3)) -> tuple[Intake, RowQueue]:
    queue = RowQueue(16, keep="newest")
    return Intake(framing, shape, queue, monotonic=lambda: 50.0, now_ms=lambda: 1234.5), queue


def drain(queue: RowQueue) -> list[Row | Refusal]:
    found = []
    while (item := queue.take(0)) is not None:
        found.append(item)
    return found


def test_rows_keep_their_id_and_time_and_get_what_is_missing() -> None:
    intake, queue = make(Framing(windows=False, deadline_ms=20))
    intake.payload(json.dumps({"values": [1, 2, 3, 4, 5, 6], "id": "mine", "at_ms": 7}).encode())
    intake.payload(np.arange(6, dtype="<f4").tobytes())
    intake.payload(np.arange(6, dtype="<f4").tobytes())
    first, second, third = (item for item in drain(queue) if isinstance(item, Row))
    assert (first.id, first.at_ms, first.due_s) == ("mine", 7.0, 50.02)
    assert second.id != third.id
    assert second.id
    assert second.at_ms == 1234.5
    assert third.x.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_garbage_costs_itself_and_is_told_with_its_id() -> None:
    intake, queue = make(Framing(windows=True, hop=3))
    intake.payload(json.dumps({"values": [[1, 2], [3, 4]]}).encode())
    intake.payload(json.dumps({"values": [[1, 2, 3]], "id": "bad"}).encode())
    intake.payload(b"\xff\xfe\xfd")
    # What a foreign sensor may do, whatever its types say.
    for reading in (np.zeros((2, 2), np.float64), np.zeros((), np.float32), [[1.0, 2.0]]):
        intake.samples(cast(Any, reading))
    intake.samples(np.zeros((1, 5), np.float32))
    intake.refuse(InputError("-", expected="samples of 8 bytes", got="2"))
    intake.payload(json.dumps({"values": [5, 6]}).encode())
    *refusals, row = drain(queue)
    assert [type(item) for item in refusals] == [Refusal] * 7
    assert [item.id for item in refusals] == ["bad", *[""] * 6]
    assert isinstance(row, Row)
    assert row.x.tolist() == [[1, 3, 5], [2, 4, 6]]
    counts = intake.counts
    assert (counts.messages, counts.unreadable, counts.samples, counts.rows) == (8, 7, 3, 1)


def test_a_known_rate_makes_gaps_of_missing_samples() -> None:
    intake, queue = make(Framing(windows=True, rate_hz=100))
    for at_ms in (0, 10, 45, 55, 65):  # 25 ms late: the limit is 25 ms
        intake.payload(json.dumps({"values": [[at_ms, 0]], "at_ms": at_ms}).encode())
    (row,) = drain(queue)
    assert isinstance(row, Row)
    assert (row.x[0].tolist(), row.at_ms, intake.counts.gaps) == ([0, 10, 45], 45.0, 0)
    intake.payload(json.dumps({"values": [[101, 0]], "at_ms": 101}).encode())
    assert intake.counts.gaps == 1
    intake.restart()
    assert intake.counts.gaps == 2


def test_another_shape_makes_other_rows_unless_there_are_none() -> None:
    intake, queue = make(Framing(windows=True))
    intake.samples(np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="channels, length"):
        intake.reshape((4,))
    assert intake.shape == (2, 3)
    intake.reshape((1, 2))
    intake.samples(np.ones((2, 1), np.float32))
    (row,) = drain(queue)
    assert isinstance(row, Row)
    assert row.x.shape == (1, 2)
    rows, queue = make(Framing(windows=False), (2, 2, 2))
    rows.payload(bytes(32))
    rows.samples(np.ones((2, 2), np.float32))
    row, refusal = sorted(drain(queue), key=lambda item: isinstance(item, Refusal))
    assert isinstance(row, Row)
    assert row.x.shape == (2, 2, 2)
    assert isinstance(refusal, Refusal)
