"""The machine, the settings, recruiting and the choice of the result: no I/O anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skerry_models.task import CampaignDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.federation import campaign_machine as machine
from skerry_server.federation.journal import RoundRecord
from skerry_server.federation.recruiting import DeviceFacts, ineligible, judge, shortage
from skerry_server.federation.selection import best_round
from skerry_server.federation.settings import BOUNDS, PROXIMAL_MU, CampaignSettings, load_settings, parse_settings

DEFAULTS = CampaignDefaults(rounds=8, local_epochs=2, batch_size=16, learning_rate=0.02, proximal_mu=0.0)

# The machine.


def test_every_way_through_the_machine() -> None:
    path = [machine.APPROVED]
    for event in ("recruit", "start", "deliver", "pass"):
        path.append(machine.next_state(path[-1], event))
    assert path == ["approved", "recruiting", "running", "gating", "finished"]


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


@pytest.mark.parametrize(
    ("quorum", "devices", "expected"), [(0.5, 3, 2), (0.5, 4, 2), (1.0, 5, 5), (0.01, 5, 1), (0.3, 10, 3), (0.5, 0, 1)]
)
def test_quorum_counts(quorum: float, devices: int, expected: int) -> None:
    assert parse_settings(DEFAULTS, {"quorum": quorum}).quorum_count(devices) == expected


# Recruiting.

FIT = DeviceFacts("a", True, "12", 50, "digits", "aa", "", False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"online": False}, "offline"),
        ({"ineligible_reason": "on battery"}, "on battery"),
        ({"quarantined": True}, "quarantined: an incident about the quality of its data is open"),
        ({"task": ""}, "runs no task, not digits"),
        ({"task": "har"}, "runs har, not digits"),
        ({"train_step_sha256": "bb"}, "runs a release with another network"),
        ({"labelled_samples": 19}, "19 labelled samples, fewer than 20"),
        ({"flower_node_id": ""}, "its training process has not joined the SuperLink"),
        ({"flower_node_id": "0"}, "its training process has not joined the SuperLink"),
    ],
)
def test_who_is_invited(changes: dict[str, object], reason: str) -> None:
    facts = replace(FIT, **changes)  # type: ignore[arg-type]  # a table of fields
    assert ineligible(facts, task="digits", train_step_sha256="aa", minimum_samples=20) == reason


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
