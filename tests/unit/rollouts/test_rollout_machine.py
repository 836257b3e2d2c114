from __future__ import annotations

import itertools

import pytest

from skerry_server.rollouts.rollout_machine import (
    ACTIVE,
    DEVICE_TRANSITIONS,
    TRANSITIONS,
    WAITS_FOR,
    IllegalRolloutEventError,
    check_device_transition,
    next_state,
)

EXPECTED = {
    ("pending", "instructed"): "canary",
    ("pending", "timed_out"): "aborted",
    ("pending", "abort"): "aborted",
    ("canary", "gate_passed"): "fleet",
    ("canary", "gate_failed"): "rolling_back",
    ("canary", "abort"): "rolling_back",
    ("fleet", "gate_passed"): "finished",
    ("fleet", "gate_failed"): "rolling_back",
    ("fleet", "abort"): "rolling_back",
    ("rolling_back", "restored"): "rolled_back",
}
STATES = ["pending", "canary", "fleet", "rolling_back", "finished", "rolled_back", "aborted"]
EVENTS = ["instructed", "timed_out", "abort", "gate_passed", "gate_failed", "restored", "nonsense"]


@pytest.mark.parametrize(("state", "event"), itertools.product(STATES, EVENTS))
def test_every_pair_of_state_and_event(state: str, event: str) -> None:
    if (state, event) in EXPECTED:
        assert next_state(state, event) == EXPECTED[state, event]
    else:
        with pytest.raises(IllegalRolloutEventError) as caught:
            next_state(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)


def test_table_is_closed_every_waiting_state_explains_itself_and_can_end() -> None:
    assert set(TRANSITIONS) == set(STATES)
    for row in TRANSITIONS.values():
        assert set(row.values()) <= set(TRANSITIONS)
    assert set(WAITS_FOR) == ACTIVE == {"pending", "canary", "fleet", "rolling_back"}
    for state in ACTIVE:
        reached = {state}
        for _ in TRANSITIONS:
            reached |= {following for each in reached for following in TRANSITIONS[each].values()}
        assert reached - ACTIVE


def test_unknown_state_is_refused() -> None:
    with pytest.raises(IllegalRolloutEventError, match="takes no event"):
        next_state("nowhere", "abort")


@pytest.mark.parametrize(("state", "following"), itertools.product(DEVICE_TRANSITIONS, DEVICE_TRANSITIONS))
def test_every_pair_of_device_states(state: str, following: str) -> None:
    allowed = {
        ("pending", "instructed"),
        ("pending", "healthy"),
        ("instructed", "healthy"),
        ("instructed", "failed"),
        ("instructed", "restored"),
        ("healthy", "failed"),
        ("healthy", "restored"),
        ("failed", "healthy"),
        ("failed", "restored"),
    }
    if (state, following) in allowed:
        assert check_device_transition(state, following) == following
    else:
        with pytest.raises(IllegalRolloutEventError):
            check_device_transition(state, following)
