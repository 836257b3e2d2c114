"""The machine, the settings, recruiting and the choice of the result: no I/O anywhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from skerry_models.task import CampaignDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.federation import campaign_machine as machine
from skerry_server.federation.participants.recruiting import DeviceFacts, Wanted, exclusion, judge, shortage
from skerry_server.federation.rounds.best_round import best_round
from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.federation.settings import (
    BOUNDS,
    CHOICES,
    FIELDS,
    PROXIMAL_MU,
    SUMS,
    CampaignSettings,
    load_settings,
    parse_settings,
)
from skerry_server.federation.strategies import STRATEGIES

DEFAULTS = CampaignDefaults(rounds=8, local_epochs=2, batch_size=16, learning_rate=0.02, proximal_mu=0.0)

# The machine.


def test_every_way_through_the_machine() -> None:
    path = [machine.APPROVED]
    for event in ("recruit", "start", "deliver", "pass"):
        path.append(machine.next_state(path[-1], event))
    assert path == ["approved", "recruiting", "running", "gating", "finished"]
    assert machine.next_state("draft", "approve") == "approved"


@pytest.mark.parametrize("state", sorted(machine.PAUSABLE))
def test_a_pause_leads_back_to_where_it_was(state: str) -> None:
    assert machine.next_state(state, "pause") == machine.PAUSED
    assert machine.next_state(machine.PAUSED, machine.resume_event(state)) == state


def test_only_what_is_not_judged_by_a_machine_is_paused() -> None:
    assert {"approved", "recruiting", "running"} == machine.PAUSABLE
    with pytest.raises(ValueError, match="cannot be paused"):
        machine.resume_event("gating")


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        ("draft", ("approve", "abort")),
        ("approved", ("pause", "abort")),
        ("running", ("pause", "abort")),
        ("gating", ("abort",)),
        ("paused", ("resume", "abort")),
        ("finished", ()),
        ("nowhere", ()),
    ],
)
def test_what_a_person_may_do(state: str, offered: tuple[str, ...]) -> None:
    assert machine.actions(state) == offered


def test_every_active_state_can_fail_abort_and_has_a_deadline_and_a_reason_to_wait() -> None:
    for state in machine.ACTIVE:
        assert machine.next_state(state, "fail") == machine.FAILED
        assert machine.next_state(state, "abort") == machine.ABORTED
        assert machine.WAITS_FOR[state]
        assert machine.deadline_ms(state, rounds=3, round_deadline_ms=10, recruiting_deadline_ms=7) > 0
    assert machine.deadline_ms("recruiting", rounds=3, round_deadline_ms=10, recruiting_deadline_ms=7) == 7
    assert (
        machine.deadline_ms("running", rounds=3, round_deadline_ms=10, recruiting_deadline_ms=7)
        == 30 + machine.RUN_OVERHEAD_MS
    )
    assert {machine.FINISHED, machine.ABORTED, machine.FAILED} == set(machine.TRANSITIONS) - machine.ACTIVE


@pytest.mark.parametrize(
    ("state", "event"), [("finished", "abort"), ("approved", "pass"), ("nowhere", "fail"), ("running", "dance")]
)
def test_an_illegal_event_raises(state: str, event: str) -> None:
    with pytest.raises(machine.IllegalCampaignEventError) as caught:
        machine.next_state(state, event)
    assert (caught.value.state, caught.value.event) == (state, event)


def test_final_states_wait_for_nothing() -> None:
    with pytest.raises(ValueError, match="waits for nothing"):
        machine.deadline_ms("failed", rounds=1, round_deadline_ms=1, recruiting_deadline_ms=1)


# Settings.


def test_settings_come_from_the_task_and_the_request() -> None:
    settings = parse_settings(DEFAULTS, {"rounds": 3, "quorum": 0.75, "learning_rate": 1})
    assert (settings.rounds, settings.quorum, settings.learning_rate, settings.batch_size) == (3, 0.75, 1.0, 16)
    assert load_settings(settings.as_dict()) == settings


@pytest.mark.parametrize("name", BOUNDS)
def test_each_bound_holds(name: str) -> None:
    lowest, highest = BOUNDS[name]
    strategy = "fedprox"
    assert getattr(parse_settings(DEFAULTS, {name: highest}, strategy=strategy), name) == highest
    for bad in (lowest - 1, highest + 1, "3", None, True, float("nan"), float("inf"), [1]):
        with pytest.raises(InvalidRequestError) as caught:
            parse_settings(DEFAULTS, {name: bad}, strategy=strategy)
        assert caught.value.field == f"settings.{name}"
        assert f"to {highest:g}" in caught.value.expected


@pytest.mark.parametrize("name", ["learning_rate", "quorum"])
def test_zero_is_excluded(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="above 0"):
        parse_settings(DEFAULTS, {name: 0})


def test_whole_numbers_may_come_as_floats_and_others_not() -> None:
    assert parse_settings(DEFAULTS, {"rounds": 4.0}).rounds == 4
    with pytest.raises(InvalidRequestError, match="an integer"):
        parse_settings(DEFAULTS, {"rounds": 4.5})


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="one of rounds, local_epochs") as caught:
        parse_settings(DEFAULTS, {"epochs": 4})
    assert caught.value.field == "settings.epochs"


def test_the_proximal_term_belongs_to_fedprox() -> None:
    assert parse_settings(DEFAULTS, {}, strategy="fedprox").proximal_mu == PROXIMAL_MU
    assert parse_settings(DEFAULTS, {"proximal_mu": 0}, strategy="fedprox").proximal_mu == 0.0
    assert parse_settings(replace(DEFAULTS, proximal_mu=0.3), {}, strategy="fedprox").proximal_mu == 0.3
    assert parse_settings(replace(DEFAULTS, proximal_mu=0.3), {}, strategy="fedavg").proximal_mu == 0.0
    with pytest.raises(InvalidRequestError, match="proximal_mu"):
        parse_settings(DEFAULTS, {"proximal_mu": 0.1}, strategy="fedavg")


def test_a_document_of_an_earlier_version_loads() -> None:
    old = {"rounds": 3, "local_epochs": 1, "batch_size": 8, "learning_rate": 0.1, "proximal_mu": 0.0, "quorum": 0.4}
    settings = load_settings(old)
    assert (settings.quorum, settings.wire, settings.mode, settings.privacy) == (
        0.4,
        "float32",
        "rounds",
        {"mode": "none"},
    )


def test_every_field_survives_its_json_form() -> None:
    given = {
        "wire": "int8",
        "down_wire": "topk",
        "density": 0.05,
        "per_round": 10,
        "over_selection": 1.3,
        "selection": "oort",
        "maximum_bytes": 10_000_000,
        "eligibility": {"require_idle": True, "maximum_p99_ms": 50, "window": {"start": "22:00", "end": "06:00"}},
        "strategy_settings": {"trim": 0.1},
        "norm_bound": 3,
    }
    settings = parse_settings(DEFAULTS, given, strategy="trimmedmean")
    assert load_settings(json.loads(json.dumps(settings.as_dict()))) == settings
    assert settings.eligibility["maximum_p99_ms"] == 50.0
    assert set(settings.as_dict()) == set(FIELDS)


@pytest.mark.parametrize(
    ("given", "strategy", "field", "says"),
    [
        ({"wire": "gzip"}, "fedavg", "wire", "one of float32, bfloat16"),
        ({"wire": ["int8"]}, "fedavg", "wire", "one of"),
        ({"secure_aggregation": 1}, "fedavg", "secure_aggregation", "true or false"),
        ({"eligibility": {"require_idle": "yes"}}, "fedavg", "eligibility.require_idle", "true or false"),
        ({"eligibility": {"moon": True}}, "fedavg", "eligibility.moon", "one of require_idle"),
        ({"eligibility": {"minimum_fresh": 1.5}}, "fedavg", "eligibility.minimum_fresh", "an integer"),
        ({"eligibility": {"maximum_temperature_c": 151}}, "fedavg", "eligibility.maximum_temperature_c", "to 150"),
        (
            {"eligibility": {"window": {"start": "25:00", "end": "06:00"}}},
            "fedavg",
            "eligibility.window.start",
            "00:00",
        ),
        ({"eligibility": {"window": "night"}}, "fedavg", "eligibility.window", "HH:MM"),
        ({"eligibility": []}, "fedavg", "eligibility", "an object"),
        ({"privacy": {"mode": "magic"}}, "fedavg", "privacy.mode", "one of none, central, local"),
        ({"strategy_settings": {"trim": 0.9}}, "trimmedmean", "strategy_settings.trim", "below 0.5"),
        ({"strategy_settings": {"x": [[1]]}}, "trimmedmean", "strategy_settings.x", "finite numbers"),
        ({"strategy_settings": {"x": float("nan")}}, "trimmedmean", "strategy_settings.x", "finite numbers"),
        ({"mode": "buffered"}, "fedavg", "mode", "rounds with strategy fedavg"),
        ({"mode": "rounds"}, "fedbuff", "mode", "buffered with strategy fedbuff"),
        ({"norm_bound": 0.5}, "fedavg", "norm_bound", "0 (none) or a number from 1"),
        ({"secure_aggregation": True}, "median", "secure_aggregation", "needs to see each update"),
        ({"secure_aggregation": True, "wire": "int8"}, "fedavg", "wire", "float32 with secure_aggregation"),
        ({"secure_aggregation": True, "norm_bound": 2}, "fedavg", "norm_bound", "0 with secure_aggregation"),
        ({"secure_aggregation": True, "selection": "oort"}, "fedavg", "selection", "uniform with secure"),
        ({"selection": "oort"}, "fedbuff", "selection", "uniform with mode buffered"),
    ],
)
def test_what_is_wrong_or_does_not_go_together_is_named(
    given: dict[str, object], strategy: str, field: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_settings(DEFAULTS, given, strategy=strategy)
    assert caught.value.field == f"settings.{field}"
    assert says in caught.value.expected


def test_words_and_strategies_are_those_that_exist() -> None:
    assert STRATEGIES.keys() >= SUMS
    for name, words in CHOICES.items():
        assert getattr(parse_settings(DEFAULTS, {}), name) in words
    assert parse_settings(DEFAULTS, {}, strategy="fedbuff").mode == "buffered"


@pytest.mark.parametrize(
    ("per_round", "over_selection", "devices", "wanted", "asked", "quorum"),
    [
        (0, 1.0, 21, 21, 21, 11),
        (0, 2.0, 21, 21, 21, 11),
        (10, 1.3, 21, 10, 13, 5),
        (10, 1.3, 8, 8, 8, 4),
        (3, 1.1, 9, 3, 4, 2),
    ],
)
def test_how_many_devices_a_round_wants_asks_and_needs(
    per_round: int, over_selection: float, devices: int, wanted: int, asked: int, quorum: int
) -> None:
    settings = parse_settings(DEFAULTS, {"per_round": per_round, "over_selection": over_selection})
    assert (settings.wanted(devices), settings.asked(devices), settings.quorum_count(devices)) == (
        wanted,
        asked,
        quorum,
    )


@pytest.mark.parametrize(
    ("quorum", "devices", "expected"), [(0.5, 3, 2), (0.5, 4, 2), (1.0, 5, 5), (0.01, 5, 1), (0.3, 10, 3), (0.5, 0, 1)]
)
def test_quorum_counts(quorum: float, devices: int, expected: int) -> None:
    assert parse_settings(DEFAULTS, {"quorum": quorum}).quorum_count(devices) == expected


# Recruiting.

FIT = DeviceFacts("a", True, "12", 50, "digits", "aa", "", False, release_id="r1")
WANTED = Wanted("digits", "aa", 20, release_id="r1")
MINUTE = 60_000


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({}, "", ""),
        ({"online": False}, "offline", "offline"),
        ({"ineligible_reason": "on battery"}, "device", "on battery"),
        ({"ineligible_reason": "91 °C", "ineligible_code": "hot"}, "hot", "91 °C"),
        ({"ineligible_reason": "91 °C", "ineligible_code": "gremlins"}, "device", "91 °C"),
        ({"quarantined": True}, "quarantined", "quarantined: an incident about the quality of its data is open"),
        ({"task": ""}, "no-release", "runs no task, not digits"),
        ({"task": "har"}, "other-task", "runs har, not digits"),
        ({"train_step_sha256": "bb"}, "other-step", "runs a release with another network"),
        ({"release_id": "r0"}, "other-release", "runs r0, not r1"),
        ({"labelled_samples": 19}, "few-samples", "19 labelled samples, fewer than 20"),
        ({"flower_node_id": ""}, "no-node", "its training process has not joined the SuperLink"),
        ({"flower_node_id": "0"}, "no-node", "its training process has not joined the SuperLink"),
        ({"last_participation_ms": 41 * MINUTE}, "resting", "its last update is 59 min old, 60 min wanted"),
        ({"last_participation_ms": 40 * MINUTE}, "", ""),
    ],
)
def test_who_is_invited(changes: dict[str, object], code: str, reason: str) -> None:
    facts = replace(FIT, **changes)  # type: ignore[arg-type]  # a table of fields
    found = exclusion(facts, replace(WANTED, rest_minutes=60), at_ms=100 * MINUTE)
    assert (("", "") if found is None else (found.code, found.reason)) == (code, reason)


def settings(**changes: object) -> CampaignSettings:
    return parse_settings(DEFAULTS, {"minimum_devices": 2, "recruiting_deadline_ms": 1000, **changes})


@pytest.mark.parametrize(
    ("states", "waited_ms", "verdict"),
    [
        ({}, 0, "wait"),
        ({}, 1000, "fail"),
        ({"a": "accepted", "b": "accepted"}, 0, "start"),
        ({"a": "accepted", "b": "accepted", "c": "declined"}, 0, "start"),
        ({"a": "accepted", "b": "accepted", "c": "invited"}, 999, "wait"),
        ({"a": "accepted", "b": "accepted", "c": "invited"}, 1000, "start"),
        ({"a": "accepted", "b": "invited"}, 1000, "fail"),
        ({"a": "accepted", "b": "declined"}, 10, "wait"),
        ({"a": "accepted", "b": "accepted", "c": "excluded"}, 0, "start"),
    ],
)
def test_when_the_first_round_begins(states: dict[str, str], waited_ms: int, verdict: str) -> None:
    assert judge(settings(), states, waited_ms=waited_ms) == verdict


def test_a_shortage_names_devices_and_reasons() -> None:
    text = shortage(settings(), {"a": "accepted", "b": "declined"}, {"c": "offline"})
    assert text == "1 of at least 2 devices accepted (c: offline; b: declined)"
    many = shortage(settings(), {}, {f"d{n}": "offline" for n in range(9)})
    assert many.endswith("d4: offline; ...)")


# The result.


def record(number: int, accuracy: float) -> RoundRecord:
    return RoundRecord(number, 3, 3, accuracy, 0.1, 1.0, f"{number}" * 64, {}, number)


def test_the_best_on_the_holdout_wins_and_the_earlier_of_equals() -> None:
    rounds = [record(1, 0.8), record(2, 0.9), record(3, 0.9), record(4, 0.85)]
    assert best_round(rounds, base_accuracy=0.95).number == 2


def test_an_incident_is_answered_by_the_best_on_its_devices() -> None:
    rounds = [record(1, 0.90), record(2, 0.89), record(3, 0.70)]
    cohort = {1: 0.60, 2: 0.75, 3: 0.99}
    # Round 3 is best on the devices but lost too much on the holdout.
    assert best_round(rounds, base_accuracy=0.90, cohort_accuracy=cohort).number == 2
    assert best_round(rounds, base_accuracy=0.72, cohort_accuracy=cohort).number == 3
    # Nothing acceptable: the holdout decides.
    assert best_round(rounds, base_accuracy=0.99, cohort_accuracy=cohort).number == 1
    assert best_round(rounds, base_accuracy=0.90, cohort_accuracy={}).number == 1


def test_there_must_be_a_round() -> None:
    with pytest.raises(ValueError, match="no round"):
        best_round([], base_accuracy=0.5)
