from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from skerry_server.errors import InvalidRequestError
from skerry_server.incidents.guards import (
    Situation,
    check_approval,
    check_evidence,
    check_start,
    may_reopen,
)
from skerry_server.incidents.incident_machine import FINAL, OPEN
from skerry_server.incidents.policy_settings import PolicySettings, parse_settings

GOOD = Situation(
    kind="drift",
    severity="act",
    devices=3,
    labels={"a": 50, "b": 60},
    now_ms=10_000_000,
    policy_enabled=True,
)
SETTINGS = PolicySettings()


def refused(check: str, **changes: Any) -> list[str]:
    situation = dataclasses.replace(GOOD, **changes)
    refusals = {
        "evidence": lambda: check_evidence(situation, SETTINGS),
        "approval": lambda: check_approval(situation),
        "start": lambda: check_start(situation, SETTINGS),
    }[check]()
    assert all(refusal.detail for refusal in refusals)
    return [refusal.guard for refusal in refusals]


@pytest.mark.parametrize(
    ("check", "changes", "guards"),
    [
        ("evidence", {}, []),
        ("evidence", {"severity": "critical"}, []),
        ("evidence", {"severity": "warn"}, ["severity"]),
        ("evidence", {"severity": "none"}, ["severity"]),
        ("evidence", {"devices": 1}, ["devices"]),
        ("evidence", {"devices": 1, "severity": "info"}, ["severity", "devices"]),
        ("evidence", {"kind": "data-quality"}, ["kind"]),
        ("evidence", {"kind": "health"}, ["kind"]),
        ("approval", {}, []),
        ("approval", {"policy_enabled": False}, ["approval"]),
        ("approval", {"policy_enabled": False, "approved_by_person": True}, []),
        ("approval", {"kind": "data-quality", "approved_by_person": True}, ["kind"]),
        ("approval", {"breaker": "incident-x"}, ["breaker"]),
        ("approval", {"breaker": "incident-x", "approved_by_person": True}, []),
        ("start", {}, []),
        ("start", {"labels": {}}, ["labels"]),
        ("start", {"labels": {"a": 1_000, "b": 49}}, ["labels"]),
        ("start", {"labels": {"a": 50}, "devices": 1}, []),
        ("start", {"last_attempt_ms": 10_000_000 - 599_999}, ["cooldown"]),
        ("start", {"last_attempt_ms": 10_000_000 - 600_000}, []),
        ("start", {"in_flight": "campaign-y"}, ["one in flight"]),
        ("start", {"policy_enabled": False}, ["approval"]),
        ("start", {"kind": "data-quality"}, ["kind", "kind"]),
        (
            "start",
            {"labels": {}, "in_flight": "x", "last_attempt_ms": 9_999_999},
            ["labels", "cooldown", "one in flight"],
        ),
    ],
)
def test_guard_table(check: str, changes: dict[str, Any], guards: list[str]) -> None:
    assert refused(check, **changes) == guards


def test_details_say_what_is_missing() -> None:
    situation = dataclasses.replace(GOOD, labels={"a": 7}, last_attempt_ms=GOOD.now_ms - 590_500)
    details = [refusal.detail for refusal in check_start(situation, SETTINGS)]
    assert details == ["0 of 2 needed devices have 50 new labels (most: 7)", "cool-down of 10 s"]


@pytest.mark.parametrize("state", sorted(FINAL))
@pytest.mark.parametrize(("known", "elapsed", "expected"), [(True, 99, False), (True, 100, True), (False, 0, True)])
def test_what_was_decided_stays_decided_for_a_while(state: str, known: bool, elapsed: int, expected: bool) -> None:
    assert (
        may_reopen(state=state, device_known=known, updated_ms=1_000, now_ms=1_000 + elapsed, quiet_ms=100) is expected
    )


@pytest.mark.parametrize("state", sorted(OPEN))
def test_open_incidents_are_not_reopened(state: str) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        may_reopen(state=state, device_known=True, updated_ms=0, now_ms=0, quiet_ms=0)


def test_policy_settings_name_the_wrong_field() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"strategy": "magic"}, "settings.strategy"),
        ({"rounds": 0}, "settings.rounds"),
        ({"colour": "blue"}, "settings.colour"),
        ({"minimum_devices": 0}, "settings.minimum_devices"),
    ]
    for document, field in wrong:
        with pytest.raises(InvalidRequestError) as caught:
            parse_settings(document)
        assert caught.value.field == field


def test_campaign_settings_are_those_that_were_given() -> None:
    settings = parse_settings({"rounds": 5, "learning_rate": 0.05, "participants": 3, "samples": 30})
    assert settings.campaign_settings() == {
        "rounds": 5,
        "learning_rate": 0.05,
        "minimum_devices": 3,
        "minimum_samples": 30,
    }
