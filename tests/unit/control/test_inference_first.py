"""Training waits for inference: the decision second by second, the record between the processes, the thread."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.engine.counters import RECENT, Counters, Form
from skerry_agent.policy.inference_first import HOLD_S, LONGEST_HOLD_S, InferenceFirst
from skerry_agent.policy.live_latency import (
    FEWEST,
    MOST,
    PERIOD_S,
    WINDOW_S,
    LatencyPublisher,
    LatencyReader,
    LatencyWindow,
    LiveLatency,
)
from skerry_agent.training.priority import IdleThread


def ms(value: float | None) -> LiveLatency | None:
    return None if value is None else LiveLatency(100, round(value * 1000))


# Name: (time, p99 in ms or None, whether training waits), step by step; the limit is 50 ms, the factor 1.5, from rest.
COURSES: dict[str, list[tuple[float, float | None, bool]]] = {
    "nobody asks": [(0.0, None, False), (9.0, None, False)],
    "at rest 4 ms, training hurts, then it is calm": [
        (0.0, 4.0, False),
        (0.1, 5.9, False),
        (0.2, 6.1, True),
        (0.3, 3.0, True),  # the hold
        (0.2 + HOLD_S, 4.9, True),  # above 0.8 of the bound of 6 ms
        (0.3 + HOLD_S, 4.7, False),
    ],
    "requests end in a pause": [(0.0, 4.0, False), (0.1, 9.0, True), (0.1 + HOLD_S, None, False)],
    "the limit holds without a resting value": [
        (0.0, None, False),
        (0.1, 51.0, True),
        (9.0, 49.0, True),
        (9.1, 41.0, True),
        (9.2, 39.0, False),
    ],
    "answers are slow for another reason: the resting value follows in the pause": [
        (0.0, 4.0, False),
        (0.1, 10.0, True),
        (1.0, 10.0, True),
        (2.5, 10.0, True),  # rest 5.8
        (4.6, 10.0, True),  # rest 7.1
        (6.7, 10.0, True),  # rest 7.9
        (8.8, 10.0, False),  # rest 8.6, 0.8 of the bound is 10.3
    ],
    "above the limit for ever: out for ever": [(0.0, 4.0, False), *((t, 60.0, True) for t in (1.0, 9.0, 99.0))],
    "microseconds are nobody's pain": [(0.0, 0.1, False), (0.1, 0.9, False), (0.2, 1.1, True)],
}


@pytest.mark.parametrize("name", COURSES)
def test_courses(name: str) -> None:
    guard = InferenceFirst(limit_ms=50.0, factor=1.5)
    for at, p99, waits in COURSES[name]:
        assert guard.must_wait(ms(p99), at) is waits, at


def test_a_value_beside_training_is_not_one_at_rest() -> None:
    guard = InferenceFirst(limit_ms=50.0, factor=1.5)
    for number in range(100):
        guard.must_wait(ms(4.0 if number < 2 else 5.5), number * 0.1)
    assert guard.resting_us == 4000.0
    guard.must_wait(ms(5.0), 10.0 + WINDOW_S + PERIOD_S)
    assert guard.resting_us == pytest.approx(4300.0)
    assert guard.bound_us == pytest.approx(6450.0)


def test_training_that_hurts_again_and_again_gets_less_and_less() -> None:
    guard = InferenceFirst(limit_ms=50.0, factor=1.5)
    guard.must_wait(ms(4.0), 0.0)
    now, pauses = 0.05, []
    for _ in range(7):
        assert guard.must_wait(ms(9.0), now)
        began = now
        while guard.must_wait(ms(4.0), now):
            now += 0.05
        pauses.append(now - began)
        now += 0.05
    assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0], abs=0.06)
    assert max(pauses) <= LONGEST_HOLD_S + 0.06
    assert guard.must_wait(ms(90.0), now + 60.0)
    assert guard.must_wait(None, now + 60.0 + HOLD_S - 0.01)
    assert not guard.must_wait(None, now + 60.0 + HOLD_S), "after a calm time the first pause is short again"


def test_bounds_are_checked() -> None:
    for limit, factor in ((0.0, 1.5), (50.0, 1.0)):
        with pytest.raises(ValueError, match="factor"):
            InferenceFirst(limit_ms=limit, factor=factor)


def test_the_window_forgets_and_is_bounded() -> None:
    window = LatencyWindow()
    assert window.value() == LiveLatency(0, 0)
    window.add([float(value) for value in range(1, 101)], 0.0)
    assert window.value() == LiveLatency(100, 99)
    window.add([1000.0] * 100, 1.0)
    assert window.value() == LiveLatency(200, 1000)
    window.add([], WINDOW_S + 0.5)
    assert window.value() == LiveLatency(100, 1000)
    for _ in range(9):
        window.add([5.0] * 2_000, 3.0)
    assert window.value().requests <= MOST
    window.add([7.0] * (3 * MOST), 3.0)
    assert window.value() == LiveLatency(MOST, 7)


class Answers:
    """Counters of an engine, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.latencies: list[float] = []

    def latest(self, since: int) -> tuple[int, Sequence[float]]:
        return len(self.latencies), self.latencies[since:][::-1]


def test_the_record_crosses_and_ages(tmp_path: Path) -> None:
    answers = Answers()
    answers.latencies = [9e9] * 50  # before serving published anything
    reader = LatencyReader(tmp_path / "latency", monotonic=lambda: answers.now)
    assert reader.read() is None
    publisher = LatencyPublisher(tmp_path / "latency", answers.latest, monotonic=lambda: answers.now)
    answers.now += WINDOW_S  # the reader looks again
    publisher.step()
    assert reader.read() is None, "no request yet"
    answers.latencies += [250.0] * (FEWEST - 1)
    publisher.step()
    assert reader.read() is None, "too few to tell"
    answers.latencies += [400.0]
    publisher.step()
    assert reader.read() == LiveLatency(FEWEST, 400)
    answers.now += WINDOW_S + 0.1
    assert reader.read() is None, "serving says nothing any more"
    answers.latencies += [80.0] * 100
    publisher.step()
    assert reader.read() == LiveLatency(100, 80)
    record = (tmp_path / "latency").read_bytes()
    for index in range(len(record)):
        torn = bytearray(record)
        torn[index] ^= 0x40
        with (tmp_path / "latency").open("r+b") as file:
            file.write(torn)
        assert reader.read() is None, index
    publisher.close()
    reader.close()


@pytest.mark.parametrize("content", [b"", b"x", struct.pack("<QIII", 1, 2, 3, 4)])
def test_a_file_of_anything_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latency").write_bytes(content)
    reader = LatencyReader(tmp_path / "latency", monotonic=lambda: 5.0)
    assert reader.read() is None
    reader.close()


def test_counters_hand_out_each_latency_once() -> None:
    counters = Counters()
    form = counters.form(Form("fp32", 0, "cpu"))
    assert counters.latest(0) == (0, [])
    for value in (1.0, 2.0, 3.0):
        counters.answered(1, value, form)
    assert counters.latest(0) == (3, [3.0, 2.0, 1.0])
    assert counters.latest(2) == (3, [3.0])
    assert counters.latest(3) == counters.latest(9) == (3, [])
    for value in range(RECENT + 5):
        counters.answered(1, float(value), form)
    total, latencies = counters.latest(3)
    assert (total, len(latencies), latencies[0]) == (RECENT + 8, RECENT, RECENT + 4.0)


def test_only_training_is_lowered() -> None:
    thread = IdleThread()
    before = os.sched_getscheduler(0)
    try:
        assert thread.run(lambda: os.sched_getscheduler(0)) == os.SCHED_IDLE
        assert thread.run(threading.get_ident) == thread.run(threading.get_ident) != threading.get_ident()
        assert os.sched_getscheduler(0) == before
        assert thread.run(lambda: float(np.ones(3).sum())) == 3.0
        with pytest.raises(ValueError, match="low"):
            thread.run(lambda: int("low"))
    finally:
        thread.close()
