"""When a certificate is renewed: the table and the look, on hand-made certificates of 90 days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.identity.certificate import CertificateFacts
from skerry_agent.identity.renewal_machine import (
    PAUSE_S,
    TABLE,
    Event,
    State,
    advance,
    look,
    pause_s,
    renewal_moment,
)
from skerry_agent.state_table import IllegalEventError

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def facts(serial: str = "1", days: float = 90) -> CertificateFacts:
    return CertificateFacts("press-07", serial, BEGIN, BEGIN + timedelta(days=days), b"")


def day(number: float) -> datetime:
    return BEGIN + timedelta(days=number)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_without_a_row_raises(state: State, event: Event) -> None:
    if event in TABLE[state]:
        assert advance(state, event) in State
    else:
        with pytest.raises(IllegalEventError, match=f"{state.value} takes no {event.value}") as raised:
            advance(state, event)
        assert (raised.value.state, raised.value.event) == (state, event)


def test_every_state_can_come_back_to_valid() -> None:
    reached = {State.VALID}
    while True:
        more = {state for state, row in TABLE.items() if set(row.values()) & reached}
        if more <= reached:
            break
        reached |= more
    assert reached == set(State)


@pytest.mark.parametrize(
    ("state", "at", "doubted", "event"),
    [
        (State.VALID, day(0), False, None),
        (State.VALID, day(44.9), False, None),
        (State.VALID, day(59.5), False, Event.AGED),
        (State.VALID, day(90), False, Event.ENDED),
        (State.VALID, day(1), True, Event.DOUBTED),
        # In 1970 a certificate is young; only the broker can tell that it is not.
        (State.VALID, datetime(1970, 1, 1, tzinfo=UTC), False, None),
        (State.VALID, datetime(1970, 1, 1, tzinfo=UTC), True, Event.DOUBTED),
        (State.VALID, datetime(2040, 1, 1, tzinfo=UTC), False, Event.ENDED),
        (State.DUE, day(59.5), False, None),
        (State.DUE, day(10), False, Event.YOUNG),
        (State.DUE, day(10), True, None),
        (State.DUE, day(91), False, Event.ENDED),
        (State.EXPIRED, day(91), True, None),
        (State.EXPIRED, day(70), False, Event.AGED),
        (State.EXPIRED, day(1), False, Event.YOUNG),
        (State.EXPIRED, day(1), True, Event.DOUBTED),
        (State.RENEWING, day(91), True, None),
        (State.RENEWING, day(1), False, None),
    ],
)
def test_what_time_and_broker_do_to_a_certificate(
    state: State, at: datetime, doubted: bool, event: Event | None
) -> None:
    assert look(state, facts(), at, doubted=doubted) is event


@given(
    st.sampled_from([State.VALID, State.DUE, State.EXPIRED]),
    st.integers(-20_000, 60_000),
    st.booleans(),
)
def test_a_look_settles_and_its_event_is_legal(state: State, days: int, doubted: bool) -> None:
    moment = day(days)
    event = look(state, facts(), moment, doubted=doubted)
    if event is not None:
        state = advance(state, event)
    assert look(state, facts(), moment, doubted=doubted) is None


@given(st.integers(0, 2**159))
def test_renewal_is_between_50_and_66_percent_of_the_life_and_does_not_move(serial: int) -> None:
    one = facts(f"{serial:x}")
    moment = renewal_moment(one)
    assert day(45) <= moment <= day(59.4)
    assert moment == renewal_moment(facts(f"{serial:x}"))


def test_a_fleet_is_spread_over_the_range() -> None:
    part = [(renewal_moment(facts(str(number))) - day(45)) / timedelta(days=14.4) for number in range(400)]
    for quarter in range(4):
        assert 70 <= sum(quarter / 4 <= value < (quarter + 1) / 4 for value in part) <= 130


def test_the_pause_is_short_beside_a_life() -> None:
    assert pause_s(facts()) == PAUSE_S
    assert pause_s(facts(days=1)) == 3 * 3600
