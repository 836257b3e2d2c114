"""Every pair of state and event, written out by hand."""

from __future__ import annotations

import pytest

from skerry_agent.state_table import IllegalEventError
from skerry_agent.update.update_machine import (
    DEADLINES_S,
    RESUMES,
    SETTLED,
    SWITCHED,
    TRANSITIONS,
    Event,
    State,
    advance,
)
from skerry_contract.v1.device_pb2 import UpdateStatus

#: state: events that lead on, in the order of the columns; "-" is illegal.
COLUMNS = (
    "start confirm forbid supersede allowed hold downloaded verified staged proved activated healthy"
    " retry reject roll_back"
)
TABLE = """
idle        need committed quarantined - - - - - - - - - - - -
need        - - - idle downloading - - - - - - - - - rolled_back
downloading - - - idle - need verifying - - - - - - - rolled_back
verifying   - - - idle - - - staging - - - - downloading quarantined rolled_back
staging     - - - idle - - - - proving - - - downloading quarantined rolled_back
proving     - - - idle - need - - - activating - - downloading quarantined rolled_back
activating  - - - - - - - - - - probation - - quarantined rolled_back
probation   - - - - - - - - - - - committed - quarantined rolled_back
committed   need committed quarantined - - - - - - - - - - - -
rolled_back need committed quarantined - - - - - - - - - - - -
quarantined need committed quarantined - - - - - - - - - - - -
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
PAIRS = [(row[0], event, after) for row in ROWS for event, after in zip(COLUMNS.split(), row[1:], strict=True)]


def test_the_table_names_every_state_and_event() -> None:
    assert [row[0] for row in ROWS] == [state.value for state in State]
    assert COLUMNS.split() == [event.value for event in Event]
    assert len(PAIRS) == len(State) * len(Event)


@pytest.mark.parametrize(("state", "event", "after"), PAIRS)
def test_every_pair(state: str, event: str, after: str) -> None:
    if after == "-":
        with pytest.raises(IllegalEventError) as caught:
            advance(State(state), Event(event))
        assert (caught.value.state, caught.value.event) == (state, event)
    else:
        assert advance(State(state), Event(event)) is State(after)


def test_states_are_those_of_the_wire() -> None:
    names = {name.removeprefix("UPDATE_STATUS_").lower() for name in UpdateStatus.keys()} - {"unspecified"}  # noqa: SIM118
    assert names == {state.value for state in State}


def test_every_waiting_state_has_a_deadline_and_a_way_to_fail() -> None:
    for state in set(State) - SETTLED:
        assert DEADLINES_S[state] > 0
        assert Event.SUPERSEDE in TRANSITIONS[state] or state in SWITCHED
        assert advance(state, Event.ROLL_BACK) is State.ROLLED_BACK
    assert set(RESUMES) == set(State) - SETTLED - {State.NEED, State.DOWNLOADING}


def test_every_state_can_be_reached_and_left() -> None:
    reached, frontier = {State.IDLE}, [State.IDLE]
    while frontier:
        for after in TRANSITIONS[frontier.pop()].values():
            if after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(State)
    for state in SETTLED:
        assert advance(state, Event.START) is State.NEED


def test_a_switch_that_has_begun_is_not_superseded() -> None:
    for state in SWITCHED:
        assert Event.SUPERSEDE not in TRANSITIONS[state]
        assert Event.RETRY not in TRANSITIONS[state]
