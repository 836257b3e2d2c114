from __future__ import annotations

import math

import pytest

from skerry_models.gates import GateLimits, evaluate_gates

GOOD = {
    "accuracy": 0.92,
    "accuracy_int8_qdq": 0.915,
    "accuracy_int8_x86": 0.93,
    "parity": 1e-6,
    "latency_int8_p99_us": 300.0,
    "size_fp32_bytes": 30_000.0,
}
FIRST = ["minimum-accuracy", "int8-accuracy", "parity", "latency", "size"]

SCENARIOS = [
    ("good first release", {}, None, set()),
    ("useless", {"accuracy": 0.4, "accuracy_int8_qdq": 0.4, "accuracy_int8_x86": 0.4}, None, {"minimum-accuracy"}),
    ("INT8 exactly one point below", {"accuracy_int8_qdq": 0.91}, None, set()),
    ("INT8 more than one point below", {"accuracy_int8_qdq": 0.909}, None, {"int8-accuracy"}),
    ("only the x86 form loses", {"accuracy_int8_x86": 0.88}, None, {"int8-accuracy"}),
    ("graph differs from torch", {"parity": 2e-4}, None, {"parity"}),
    ("slow", {"latency_int8_p99_us": 10_001.0}, None, {"latency"}),
    ("large", {"size_fp32_bytes": 1e9}, None, {"size"}),
    ("unmeasured latency", {"latency_int8_p99_us": math.nan}, None, {"latency"}),
    ("within tolerance of the champion", {}, {"accuracy": 0.95}, set()),
    ("below the champion", {}, {"accuracy": 0.951}, {"champion"}),
    ("champion was never measured", {}, {}, {"champion"}),
    ("recovers the drifted", {"accuracy_drifted": 0.8}, {"accuracy": 0.94, "accuracy_drifted": 0.5}, set()),
    ("no better on drifted", {"accuracy_drifted": 0.5}, {"accuracy": 0.9, "accuracy_drifted": 0.5}, {"drifted-cohort"}),
    ("drifted not measured", {}, {"accuracy": 0.9, "accuracy_drifted": 0.5}, {"drifted-cohort"}),
    ("champion drift unmeasured", {"accuracy_drifted": 0.5}, {"accuracy": 0.9}, {"drifted-cohort"}),
]


@pytest.mark.parametrize(("name", "changes", "champion", "failing"), SCENARIOS, ids=[row[0] for row in SCENARIOS])
def test_scenarios(name: str, changes: dict[str, float], champion: dict[str, float] | None, failing: set[str]) -> None:
    results = evaluate_gates({**GOOD, **changes}, champion)
    assert {result.name for result in results if not result.passed} == failing
    names = [result.name for result in results]
    assert names[:5] == FIRST
    assert ("champion" in names) == (champion is not None)


@pytest.mark.parametrize("figure", sorted(GOOD))
def test_a_figure_that_is_missing_fails(figure: str) -> None:
    results = evaluate_gates({name: value for name, value in GOOD.items() if name != figure}, None)
    assert not all(result.passed for result in results)


def test_details_name_figure_and_limit() -> None:
    (result,) = [r for r in evaluate_gates({**GOOD, "accuracy": 0.95}, None) if r.name == "int8-accuracy"]
    assert result.value == 0.915
    assert result.limit == pytest.approx(0.94)
    assert "0.915" in result.detail
    assert "0.94" in result.detail


def test_limits_can_be_set() -> None:
    results = evaluate_gates(GOOD, {"accuracy": 0.95}, GateLimits(champion_tolerance=0.0, latency_p99_us=100.0))
    assert {result.name for result in results if not result.passed} == {"champion", "latency"}
