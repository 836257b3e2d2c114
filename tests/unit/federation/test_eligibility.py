"""Which devices a campaign takes: conditions, time windows in the devices' local time, codes. Pure."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.campaign import STAY_OUT
from skerry_contract.v1.telemetry_pb2 import DeviceConditions
from skerry_server.federation.participants.eligibility import (
    EXCLUSIONS,
    RULE_BOUNDS,
    Conditions,
    EligibilityRules,
    judge_conditions,
    parse_rules,
)
from skerry_server.federation.participants.time_windows import Window, minute_of_day

HOUR = 3_600_000
#: 12:00 UTC on some day.
NOON = 20_000 * 24 * HOUR + 12 * HOUR
NIGHT = {"start": "22:00", "end": "06:00"}
WELL = Conditions(
    told_ms=NOON - 60_000,
    idle=True,
    charging=True,
    battery_percent=80.0,
    metered=False,
    temperature_c=40.0,
    latency_p99_us=9_000,
    fresh_samples=30,
    utc_offset_minutes=120,
)
STRICT: dict[str, Any] = {
    "require_idle": True,
    "require_charging": True,
    "require_unmetered": True,
    "minimum_battery_percent": 50,
    "maximum_temperature_c": 60,
    "maximum_p99_ms": 20,
    "minimum_fresh": 10,
    "window": {"start": "13:00", "end": "15:00"},
}


def judge(rules: dict[str, Any], conditions: Conditions, *, at_ms: int = NOON) -> tuple[str, str]:
    found = judge_conditions(parse_rules(rules), conditions, at_ms=at_ms)
    return ("", "") if found is None else (found.code, found.reason)


def test_a_device_that_fulfils_everything_is_taken() -> None:
    assert judge(STRICT, WELL) == ("", "")


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"idle": False}, "busy", "answers requests"),
        ({"idle": None}, "unmeasured", "does not measure whether it is idle"),
        ({"charging": False}, "battery", "not charging"),
        ({"charging": None}, "unmeasured", "does not measure whether it is charging"),
        ({"metered": True}, "metered", "metered"),
        ({"metered": None}, "unmeasured", "does not measure whether its network is metered"),
        ({"temperature_c": 60.1}, "hot", "60 °C, at most 60 °C wanted"),
        ({"temperature_c": 60.0}, "", ""),
        ({"temperature_c": None}, "unmeasured", "does not measure its temperature"),
        ({"latency_p99_us": 20_001}, "slow-answers", "p99 20.0 ms, at most 20 ms wanted"),
        ({"latency_p99_us": None}, "", ""),  # nobody asked it anything
        ({"fresh_samples": 9}, "stale-data", "9 fresh samples, 10 wanted"),
        ({"fresh_samples": None}, "unmeasured", "does not measure how many of its samples are fresh"),
        ({"utc_offset_minutes": 0}, "outside-window", "12:00 there, 13:00 to 15:00 wanted"),
        ({"utc_offset_minutes": 60}, "", ""),  # 13:00, the first minute of the window
        ({"utc_offset_minutes": 180}, "outside-window", "15:00 there, 13:00 to 15:00 wanted"),
        ({"utc_offset_minutes": None}, "unmeasured", "does not measure its local time"),
        ({"utc_offset_minutes": 900}, "unmeasured", "does not measure its local time"),  # no such zone
        ({"told_ms": 0}, "unmeasured", "has never told its state"),
        ({"told_ms": NOON - 31 * 60_000}, "unmeasured", "told nothing for 31 min"),
        ({"told_ms": NOON - 30 * 60_000}, "", ""),
    ],
)
def test_each_condition_has_a_code_and_a_reason(changes: dict[str, Any], code: str, reason: str) -> None:
    assert judge(STRICT, replace(WELL, **changes)) == (code, reason)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"charging": False, "battery_percent": 49.0}, "battery"),
        ({"charging": False, "battery_percent": 50.0}, ""),
        ({"charging": True, "battery_percent": 3.0}, ""),
        ({"charging": False, "battery_percent": None}, "unmeasured"),
        ({"charging": None, "battery_percent": 80.0}, ""),
    ],
)
def test_a_battery_matters_while_it_is_not_charged(changes: dict[str, Any], code: str) -> None:
    assert judge({"minimum_battery_percent": 50}, replace(WELL, **changes))[0] == code


def test_the_first_rule_that_fails_is_the_reason() -> None:
    assert judge(STRICT, replace(WELL, idle=False, temperature_c=99.0))[0] == "busy"


def test_without_rules_nothing_is_asked_for() -> None:
    assert judge({}, Conditions()) == ("", "")
    assert judge({"maximum_age_minutes": 1}, Conditions()) == ("", "")
    assert not parse_rules({"require_idle": False, "maximum_p99_ms": 0}).asks_for_conditions


def test_every_code_is_in_the_vocabulary_and_so_is_every_word_of_the_devices() -> None:
    assert set(STAY_OUT) <= EXCLUSIONS.keys()
    assert all(EXCLUSIONS.values())


def test_conditions_are_the_fields_of_the_message() -> None:
    assert {field.name for field in DeviceConditions.DESCRIPTOR.fields} == {
        field.name for field in fields(Conditions)
    } - {"told_ms"}
    document = {"idle": True, "temperature_c": 41.5, "something_newer": 3}
    assert Conditions.from_document(document, told_ms=7) == Conditions(told_ms=7, idle=True, temperature_c=41.5)


def test_rules_survive_their_json_form() -> None:
    rules = parse_rules(STRICT)
    assert parse_rules(rules.as_dict()) == rules
    assert EligibilityRules().as_dict() == {}
    assert set(RULE_BOUNDS) < {field.name for field in fields(EligibilityRules)}


# Windows.


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        (NIGHT, (22 * 60, 23 * 60 + 59, 0, 5 * 60 + 59), (6 * 60, 12 * 60, 21 * 60 + 59)),
        ({"start": "01:30", "end": "04:00"}, (90, 239), (89, 240, 1439)),
        ({"start": "00:00", "end": "00:00"}, (0, 719, 1439), ()),
    ],
)
def test_windows_may_cross_midnight(window: dict[str, str], inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    parsed = Window.parse(window, field="window")
    assert parsed.as_dict() == window
    assert all(parsed.contains(minute) for minute in inside)
    assert not any(parsed.contains(minute) for minute in outside)


def test_a_fleet_over_time_zones_trains_in_each_ones_night() -> None:
    rules = {"window": NIGHT, "maximum_age_minutes": 10_080}
    zones = {"Auckland": 780, "Berlin": 60, "New York": -300, "Honolulu": -600, "Kathmandu": 345}
    night = {
        hour: sorted(
            name
            for name, offset in zones.items()
            if judge(rules, replace(WELL, utc_offset_minutes=offset), at_ms=NOON + (hour - 12) * HOUR)[0] == ""
        )
        for hour in (0, 9, 18)
    }
    assert night == {0: ["Berlin", "Kathmandu"], 9: ["Auckland", "Honolulu", "New York"], 18: ["Kathmandu"]}


@given(
    start=st.integers(0, 1439),
    end=st.integers(0, 1439),
    at=st.integers(0, 10**13),
    offset=st.integers(-720, 840),
)
def test_a_window_opens_when_it_says(start: int, end: int, at: int, offset: int) -> None:
    window = Window(start, end)
    minute = minute_of_day(at, utc_offset_minutes=offset)
    assert 0 <= minute < 1440
    wait = window.opens_in(minute)
    assert window.contains((minute + wait) % 1440)
    assert not any(window.contains((minute + early) % 1440) for early in range(wait))
