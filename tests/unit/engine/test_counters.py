"""Counters, by hand."""

from __future__ import annotations

import pytest

from skerry_agent.engine.counters import FORMS, LATENCY_BOUNDS, Counters, Exemplar, Form
from skerry_agent.engine.errors import (
    DeadlineError,
    MissingValueError,
    OutOfRangeError,
    OverloadedError,
    SchemaError,
)

LARGE, SMALL = Form("int8-x86", 0, "cpu"), Form("small/int8-x86", 1, "cpu")


def test_counts_buckets_and_percentiles() -> None:
    counters = Counters()
    form = counters.form(LARGE)
    for latency in (10.0, 25.0, 26.0, 2_000_000.0):
        counters.answered(2, latency, form)
    counters.failed()
    values = counters.read()
    assert (values.requests, values.rows, values.errors) == (4, 8, 1)
    assert values.buckets == (2, 1, *[0] * (len(LATENCY_BOUNDS) - 2), 1)
    assert values.latency_sum_us == pytest.approx(2_000_061)
    assert values.latency_p50_us == pytest.approx(25.5)


def test_percentiles_are_over_the_last_2048() -> None:
    counters = Counters()
    form = counters.form(LARGE)
    for _ in range(100):
        counters.answered(1, 9000.0, form)
    for _ in range(2048):
        counters.answered(1, 5.0, form)
    assert counters.read().latency_p99_us == 5.0


def test_a_new_release_starts_its_own_counts() -> None:
    counters = Counters()
    form = counters.form(LARGE)
    counters.answered(1, 1.0, form)
    counters.failed()
    counters.release_changed()
    counters.answered(1, 1.0, form)
    values = counters.read()
    assert (values.requests, values.release_requests) == (2, 1)
    assert (values.errors, values.release_errors) == (1, 0)


def test_neither_refused_nor_shed_requests_are_errors() -> None:
    counters = Counters()
    counters.refused(SchemaError("f", expected="e", got="g"))
    counters.refused(MissingValueError("f", expected="e", got="g", rows=1))
    counters.refused(OutOfRangeError("f", expected="e", got="g", rows=1))
    counters.refused(OutOfRangeError("f", expected="e", got="g", rows=1))
    counters.shed(DeadlineError(1.0, 2.0))
    counters.shed(OverloadedError(64, 64))
    counters.shed(OverloadedError(64, 64))
    counters.late()
    values = counters.read()
    assert values.refused == {"schema": 1, "missing": 1, "out_of_range": 2}
    assert values.shed == {"deadline": 1, "overload": 2}
    assert (values.errors, values.requests, values.late) == (0, 0, 1)


def test_nothing_yet() -> None:
    values = Counters().read()
    assert (values.latency_p50_us, values.latency_p99_us, values.requests) == (0.0, 0.0, 0)
    assert values.buckets == (0,) * (len(LATENCY_BOUNDS) + 1)


def test_each_form_has_its_own_histogram_and_they_add_up() -> None:
    counters = Counters()
    large, small = counters.form(LARGE), counters.form(SMALL)
    assert counters.form(Form("int8-x86", 0, "cpu")) == large != small
    for latency, form in ((60.0, large), (70.0, large), (20.0, small)):
        counters.answered(1, latency, form)
    values = counters.read()
    assert [(form.form, form.buckets[:3], form.latency_sum_us) for form in values.forms] == [
        (LARGE, (0, 0, 2), 130.0),
        (SMALL, (1, 0, 0), 20.0),
    ]
    assert values.buckets[:3] == (1, 0, 2)
    assert counters.latest_of(small, 0) == (3, [20.0])
    assert counters.latest_of(large, 1) == (3, [70.0])
    assert counters.latest_of(large, 3) == (3, [])


def test_the_slowest_request_of_a_bucket_is_its_example() -> None:
    """Answered 4 s and 1 s before they are added up at 1000 s."""
    counters = Counters(wall=lambda: 1000.0, clock_ns=lambda: 10_000_000_000)
    form = counters.form(LARGE)
    counters.answered(1, 60.0, form, "a", 6_000_000_000)
    counters.answered(1, 90.0, form, "b", 9_000_000_000)
    counters.answered(1, 70.0, form, "c", 9_500_000_000)
    counters.answered(1, 99.0, form, "", 9_500_000_000)  # without an id it is nobody's example
    counters.answered(1, 5_000_000.0, form, "slow", 10_000_000_000)
    exemplars = counters.read().forms[0].exemplars
    assert exemplars[2] is None  # its slowest has no id
    assert exemplars[-1] == Exemplar("slow", 5_000_000.0, 1000.0)
    counters.answered(1, 90.0, form, "b", 9_000_000_000)
    counters.answered(1, 70.0, form, "c", 9_500_000_000)
    exemplars = counters.read().forms[0].exemplars
    assert exemplars[2] == Exemplar("b", 90.0, 999.0)
    assert exemplars[-1] == Exemplar("slow", 5_000_000.0, 1000.0)


def test_forms_without_end_share_the_last_place() -> None:
    counters = Counters()
    numbers = [counters.form(Form(f"form-{index}", 0, "cpu")) for index in range(FORMS + 5)]
    assert numbers == [*range(FORMS), *[FORMS - 1] * 5]
