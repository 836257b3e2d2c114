from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_server.rollouts.planning import (
    MOVING,
    DeviceView,
    Gate,
    GateLimits,
    assess,
    decide_restored,
    decide_stage,
    is_restored,
    plan_canaries,
)

VIEW = DeviceView(
    device_id="d",
    state="instructed",
    online=True,
    last_seen_ms=1_000,
    instructed_ms=1_000,
    previous_release="old",
    active_release="old",
    update_status="committed",
)
LIMITS = GateLimits()


def view(**changes: Any) -> DeviceView:
    return dataclasses.replace(VIEW, **changes)


@pytest.mark.parametrize(
    ("devices", "percent", "expected"), [(1, 1, 1), (8, 10, 1), (8, 25, 2), (9, 25, 3), (8, 100, 8), (0, 50, 0)]
)
def test_number_of_canaries(devices: int, percent: int, expected: int) -> None:
    assert len(plan_canaries([(f"d{n}", True) for n in range(devices)], percent=percent, salt="r")) == expected


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.booleans(), max_size=30), st.integers(1, 100), st.text())
def test_canaries_are_online_first_and_do_not_depend_on_the_order_given(
    devices: dict[str, bool], percent: int, salt: str
) -> None:
    chosen = plan_canaries(list(devices.items()), percent=percent, salt=salt)
    assert chosen == plan_canaries(list(devices.items())[::-1], percent=percent, salt=salt)
    offline_chosen = [name for name in chosen if not devices[name]]
    online_left = [name for name, online in devices.items() if online and name not in chosen]
    assert not (offline_chosen and online_left)


def test_canaries_differ_between_rollouts() -> None:
    devices = [(f"d{n}", True) for n in range(20)]
    assert len({plan_canaries(devices, percent=5, salt=f"rollout-{n}")[0] for n in range(20)}) > 5


@pytest.mark.parametrize(
    ("changes", "state", "detail"),
    [
        ({"active_release": "new", "reported_rollout": "r"}, "healthy", "committed"),
        ({"active_release": "new", "reported_rollout": "r", "update_status": "probation"}, "instructed", "probation"),
        ({"active_release": "new"}, "instructed", "has not answered"),
        ({"active_release": "new", "reported_rollout": "other"}, "instructed", "has not answered"),
        (
            {"reported_rollout": "r", "update_status": "rolled_back", "update_detail": "nan"},
            "failed",
            "rolled_back: nan",
        ),
        ({"reported_rollout": "r", "update_status": "quarantined"}, "failed", "no reason given"),
        ({"update_status": "rolled_back", "reported_rollout": "other"}, "instructed", "has not answered"),
        ({"online": False}, "instructed", "offline"),
        ({"reported_rollout": "r", "update_status": "downloading", "update_detail": "3/9"}, "instructed", "3/9"),
        (
            {"active_release": "new", "reported_rollout": "r", "health_release": "new", "requests": 20, "errors": 2},
            "failed",
            "2 of 20 requests failed (10.0%, limit 5.0%)",
        ),
        (
            {"active_release": "new", "reported_rollout": "r", "health_release": "new", "requests": 20, "errors": 1},
            "healthy",
            "",
        ),
        (
            {"active_release": "new", "reported_rollout": "r", "health_release": "new", "requests": 19, "errors": 19},
            "healthy",
            "",
        ),
        (
            {"active_release": "new", "reported_rollout": "r", "health_release": "old", "requests": 99, "errors": 99},
            "healthy",
            "",
        ),
        ({"state": "healthy", "active_release": "old", "reported_rollout": "r"}, "failed", "went back to old"),
        ({"state": "healthy", "online": False, "active_release": "new"}, "healthy", ""),
        ({"state": "failed", "active_release": "new", "reported_rollout": "r"}, "healthy", "committed"),
        ({"state": "failed", "online": False}, "failed", ""),
    ],
)
def test_how_a_device_is_doing(changes: dict[str, Any], state: str, detail: str) -> None:
    result = assess(view(**changes), release_id="new", rollout_id="r", limits=LIMITS)
    assert result.state == state
    assert detail in result.detail


def stage(states: str, *, name: str, elapsed: int = 0, **changes: Any) -> tuple[Gate, str]:
    """h healthy, f failed, i instructed and online, o instructed and offline, n instructed and in need."""
    views = [
        view(
            device_id=f"d{n}",
            state={"h": "healthy", "f": "failed", "i": "instructed", "o": "instructed", "n": "instructed"}[letter],
            online=letter != "o",
            **({"update_status": "need"} if letter == "n" else {}),
            **changes,
        )
        for n, letter in enumerate(states)
    ]
    decision = decide_stage(name, views, now_ms=1_000 + elapsed, started_ms=1_000, deadline_ms=60_000, limits=LIMITS)
    return decision.gate, decision.detail


@pytest.mark.parametrize(
    ("name", "states", "elapsed", "gate"),
    [
        ("canary", "", 0, Gate.ADVANCE),
        ("canary", "hh", 0, Gate.ADVANCE),
        ("canary", "hi", 0, Gate.WAIT),
        ("canary", "hn", 59_999, Gate.WAIT),
        ("canary", "hn", 60_000, Gate.ADVANCE),
        ("canary", "nn", 60_000, Gate.FAIL),
        ("fleet", "nnn", 59_999, Gate.WAIT),
        ("fleet", "nnn", 60_000, Gate.ADVANCE),
        ("canary", "hi", 59_999, Gate.WAIT),
        ("canary", "hi", 60_000, Gate.FAIL),
        ("canary", "hf", 0, Gate.FAIL),
        ("canary", "ho", 59_999, Gate.WAIT),
        ("canary", "ho", 60_000, Gate.ADVANCE),
        ("canary", "o", 60_000, Gate.FAIL),
        ("fleet", "hhhhh", 0, Gate.ADVANCE),
        ("fleet", "hhhhf", 0, Gate.ADVANCE),
        ("fleet", "hhhff", 0, Gate.FAIL),
        ("fleet", "hhhhi", 60_000, Gate.ADVANCE),
        ("fleet", "hhhii", 60_000, Gate.FAIL),
        ("fleet", "ho", 29_999, Gate.WAIT),
        ("fleet", "ho", 30_000, Gate.ADVANCE),
        ("fleet", "oooo", 30_000, Gate.ADVANCE),
        ("fleet", "hf", 0, Gate.FAIL),
    ],
)
def test_gate_of_a_stage(name: str, states: str, elapsed: int, gate: Gate) -> None:
    assert stage(states, name=name, elapsed=elapsed)[0] is gate


def test_gate_names_who_it_waits_for_and_who_failed() -> None:
    assert stage("hio", name="fleet")[1] == "1 of 3 healthy; waits for d1"
    assert stage("hff", name="fleet")[1] == "2 of 3 fleet devices failed, allowed 0: d1, d2"
    assert stage("h" * 40 + "f" * 7, name="fleet")[1].endswith("failed: d40, d41, d42, d43, d44 and 2 more")


@pytest.mark.parametrize(
    ("changes", "restored"),
    [
        ({}, True),
        ({"active_release": "new"}, False),
        ({"previous_release": "", "active_release": "new"}, True),
        ({"previous_release": "new", "active_release": "new"}, True),
        *(({"update_status": status}, False) for status in sorted(MOVING)),
    ],
)
def test_restored(changes: dict[str, Any], restored: bool) -> None:
    assert is_restored(view(**changes), release_id="new") is restored


@pytest.mark.parametrize(
    ("online", "elapsed", "gate"),
    [
        (True, 59_999, Gate.WAIT),
        (True, 60_000, Gate.ADVANCE),
        (False, 29_999, Gate.WAIT),
        (False, 30_000, Gate.ADVANCE),
    ],
)
def test_rollback_ends(online: bool, elapsed: int, gate: Gate) -> None:
    decision = decide_restored(
        [view(online=online)], now_ms=1_000 + elapsed, started_ms=1_000, deadline_ms=60_000, limits=LIMITS
    )
    assert decision.gate is gate
    assert "d" in decision.detail
