"""Counters, by hand."""

from __future__ import annotations

import pytest

from skerry_agent.engine.counters import LATENCY_BOUNDS, Counters
from skerry_agent.engine.errors import MissingValueError, OutOfRangeError, SchemaError


def test_counts_buckets_and_percentiles() -> None:
    counters = Counters()
    for latency in (10.0, 25.0, 26.0, 2_000_000.0):
        counters.answered(2, latency)
    counters.failed()
    values = counters.read()
    assert (values.requests, values.rows, values.errors) == (4, 8, 1)
    assert values.buckets == (2, 1, *[0] * (len(LATENCY_BOUNDS) - 2), 1)
    assert values.latency_sum_us == pytest.approx(2_000_061)
    assert values.latency_p50_us == pytest.approx(25.5)


def test_percentiles_are_over_the_last_2048() -> None:
    counters = Counters()
    for _ in range(100):
        counters.answered(1, 9000.0)
    for _ in range(2048):
        counters.answered(1, 5.0)
    assert counters.read().latency_p99_us == 5.0


def test_a_new_release_starts_its_own_counts() -> None:
    counters = Counters()
    counters.answered(1, 1.0)
    counters.failed()
    counters.release_changed()
    counters.answered(1, 1.0)
    values = counters.read()
    assert (values.requests, values.release_requests) == (2, 1)
    assert (values.errors, values.release_errors) == (1, 0)


def test_refusals_are_not_errors() -> None:
    counters = Counters()
    counters.refused(SchemaError("f", expected="e", got="g"))
    counters.refused(MissingValueError("f", expected="e", got="g", rows=1))
    counters.refused(OutOfRangeError("f", expected="e", got="g", rows=1))
    counters.refused(OutOfRangeError("f", expected="e", got="g", rows=1))
    values = counters.read()
    assert values.refused == {"schema": 1, "missing": 1, "out_of_range": 2}
    assert values.errors == 0


def test_nothing_yet() -> None:
    values = Counters().read()
    assert (values.latency_p50_us, values.latency_p99_us, values.requests) == (0.0, 0.0, 0)
