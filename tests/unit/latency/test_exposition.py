"""The text of metrics, read back by the parsers of prometheus_client."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics_text

from skerry_agent.engine.counters import LATENCY_BOUNDS, Counters, Form
from skerry_agent.engine.errors import DeadlineError
from skerry_agent.engine.status import EngineStatus
from skerry_agent.policy.sensors import SensorReading
from skerry_agent.serving.exposition import counter, gauge, render, wants_openmetrics
from skerry_agent.serving.metrics import describe


def read_back(text: str, *, openmetrics: bool) -> dict[str, Any]:
    """Families by name, by the parser of the format."""
    module: Any = openmetrics_text if openmetrics else prometheus
    return {family.name: family for family in module.text_string_to_metric_families(text)}


def some_status() -> EngineStatus:
    counters = Counters(wall=lambda: 1_700_000_000.5, clock_ns=lambda: 0)
    large, small = counters.form(Form("int8-x86", 0, "cpu")), counters.form(Form("small/int8-x86", 1, "cpu"))
    for latency, form, name in (
        (60.0, large, "a"),
        (90.0, large, "b-2"),
        (20.0, small, "c"),
        (9e6, small, "slow"),
    ):
        counters.answered(2, latency, form, name, 0)
    counters.shed(DeadlineError(1.0, 2.0))
    counters.late()
    reading = SensorReading(61.5, 7.25, "15W", False, "jetson-stats")
    return EngineStatus(
        "release-one", "a", "small/int8-x86", "cpu", "", counters.read(),
        rung=1, deadline_us=10_000.0, in_flight=3, sensors=reading,
    )  # fmt: skip


@pytest.mark.parametrize("openmetrics", [False, True])
def test_what_is_written_is_what_others_read(openmetrics: bool) -> None:
    text = render(describe(some_status(), 5, 4, 1 << 20), openmetrics=openmetrics).decode()
    families = read_back(text, openmetrics=openmetrics)
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values[("skerry_requests_total", ())] == 4
    assert values[("skerry_rows_total", ())] == 8
    assert values[("skerry_shed_requests_total", (("reason", "deadline"),))] == 1
    assert values[("skerry_shed_requests_total", (("reason", "overload"),))] == 0
    assert values[("skerry_late_requests_total", ())] == 1
    assert values[("skerry_requests_in_flight", ())] == 3
    assert values[("skerry_ladder_rung", ())] == 1
    assert values[("skerry_temperature_celsius", ())] == 61.5
    assert values[("skerry_power_watts", ())] == 7.25
    assert values[("skerry_deadline_seconds", ())] == 0.01
    small = [s for s in families["skerry_latency_seconds"].samples if s.labels.get("rung") == "1"]
    buckets = [sample for sample in small if sample.name.endswith("_bucket")]
    assert len(buckets) == len(LATENCY_BOUNDS) + 1
    assert [buckets[0].value, buckets[-2].value, buckets[-1].value] == [1, 1, 2]
    assert (buckets[0].labels["le"], buckets[-1].labels["le"]) == ("2.5e-05", "+Inf")
    assert next(s.value for s in small if s.name.endswith("_count")) == 2
    assert next(s.value for s in small if s.name.endswith("_sum")) == pytest.approx(9.00002)
    slow, large = buckets[-1].exemplar, families["skerry_latency_seconds"].samples[2].exemplar
    if openmetrics:
        assert (slow.labels, slow.value) == ({"request_id": "slow"}, 9.0)
        assert float(slow.timestamp) == pytest.approx(1_700_000_000.5)
        assert large.labels == {"request_id": "b-2"}  # the slowest of its bucket
    else:
        assert slow is None
        assert " # {" not in text


def test_without_sensors_a_deadline_or_a_release_their_metrics_are_not_there() -> None:
    text = render(describe(EngineStatus("", "", "", "", "", Counters().read()), 0, 0, 1), openmetrics=True).decode()
    names = set(read_back(text, openmetrics=True))
    assert {"skerry_requests", "skerry_latency_seconds"} <= names
    assert not {"skerry_temperature_celsius", "skerry_power_watts", "skerry_deadline_seconds"} & names
    assert "skerry_release_active{" not in text


def test_an_id_that_is_too_long_for_an_example_is_left_out() -> None:
    counters = Counters()
    counters.answered(1, 1.0, counters.form(Form("fp32", 0, "cpu")), "x" * 128, 0)
    text = render(describe(EngineStatus("r", "a", "fp32", "cpu", "", counters.read()), 0, 0, 1), openmetrics=True)
    assert b" # {" not in text
    assert len(read_back(text.decode(), openmetrics=True)) > 5


def test_numbers_and_texts() -> None:
    families = [
        gauge("g", "a\\b\nc", [({"l": 'x"\n\\'}, math.inf), ({}, -0.5), ({}, 1e16)]),
        counter("c", "t", [({}, 3)]),
    ]
    assert render(families, openmetrics=False).decode() == (
        "# HELP g a\\\\b\\nc\n# TYPE g gauge\n"
        'g{l="x\\"\\n\\\\"} +Inf\ng -0.5\ng 1e+16\n'
        "# HELP c_total t\n# TYPE c_total counter\nc_total 3\n"
    )
    assert render(families[1:], openmetrics=True).decode() == "# HELP c t\n# TYPE c counter\nc_total 3\n# EOF\n"


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("application/openmetrics-text;q=0.3, text/plain;version=0.0.4;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;version=9", False),
        (";;;,,=", False),
    ],
)  # fmt: skip
def test_what_is_asked_for(accept: str, wants: bool) -> None:
    assert wants_openmetrics(accept) is wants
