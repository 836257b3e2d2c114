from __future__ import annotations

import itertools

import pytest

from skerry_server.incidents.incident_machine import (
    FINAL,
    IN_FLIGHT,
    OPEN,
    TRANSITIONS,
    UNDECIDED,
    WAITS_FOR,
    IllegalIncidentEventError,
    after_failure,
    next_state,
)

EXPECTED = {
    "detected": "confirm>confirmed quarantine>quarantined approve>approved subside>resolved dismiss>dismissed "
    "expire>dismissed",
    "confirmed": "propose>proposed approve>approved subside>resolved dismiss>dismissed",
    "proposed": "approve>approved subside>resolved dismiss>dismissed expire>dismissed",
    "approved": "start>training dismiss>dismissed expire>rejected",
    "training": "built>gated retry>approved reject>rejected trip>breaker_open",
    "gated": "roll_out>canary retry>approved reject>rejected trip>breaker_open",
    "canary": "cured>resolved retry>approved roll_back>rolled_back trip>breaker_open",
    "quarantined": "subside>resolved dismiss>dismissed",
    "breaker_open": "approve>approved dismiss>dismissed",
    "resolved": "",
    "rejected": "",
    "rolled_back": "",
    "dismissed": "",
}
EVENTS = sorted({pair.split(">")[0] for row in EXPECTED.values() for pair in row.split()} | {"nonsense"})


@pytest.mark.parametrize(("state", "event"), itertools.product(EXPECTED, EVENTS))
def test_every_pair_of_state_and_event(state: str, event: str) -> None:
    row = dict(pair.split(">") for pair in EXPECTED[state].split())
    if event in row:
        assert next_state(state, event) == row[event]
    else:
        with pytest.raises(IllegalIncidentEventError) as caught:
            next_state(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)


def test_no_way_leads_from_quarantine_to_training() -> None:
    reached = {"quarantined"}
    for _ in TRANSITIONS:
        reached |= {following for each in reached for following in TRANSITIONS[each].values()}
    assert reached == {"quarantined", "resolved", "dismissed"}


def test_sets_of_states() -> None:
    assert {"resolved", "rejected", "rolled_back", "dismissed"} == FINAL
    assert set(TRANSITIONS) == OPEN | FINAL
    assert IN_FLIGHT | UNDECIDED <= OPEN
    assert set(WAITS_FOR) == OPEN


@pytest.mark.parametrize(
    ("state", "attempts", "automatic", "event"),
    [
        ("training", 1, True, "retry"),
        ("training", 1, False, "reject"),
        ("training", 3, True, "trip"),
        ("gated", 2, True, "retry"),
        ("gated", 2, False, "reject"),
        ("gated", 3, False, "trip"),
        ("canary", 1, True, "retry"),
        ("canary", 1, False, "roll_back"),
        ("canary", 3, True, "trip"),
    ],
)
def test_failed_attempts(state: str, attempts: int, automatic: bool, event: str) -> None:
    assert after_failure(state, attempts=attempts, maximum_attempts=3, automatic=automatic) == event
    assert event in TRANSITIONS[state]
