"""When another network of a release takes over, as a table. Pure.

A release may hold several networks of one task, from large to small: its *rungs*. A move to a smaller one holds for a
while before anything else is done: the latencies of the network before it say nothing about this one. A move to a
larger one is on trial: if that has to be taken back, the next hold is twice as long, so a device that is just too slow
does not go up and down all day.

==========  ===================================================================
position    meaning
==========  ===================================================================
SETTLED     this network answers, and nothing speaks against another move
HELD        a smaller one has just taken over
TRIAL       a larger one has just taken over
==========  ===================================================================
"""

from __future__ import annotations

import enum

from skerry_agent.state_table import IllegalEventError


class Position(enum.StrEnum):
    """Where the ladder stands."""

    SETTLED = "settled"
    HELD = "held"
    TRIAL = "trial"


class Event(enum.StrEnum):
    """What a look at the device finds; one a look, the first that holds."""

    #: The power mode asks for a smaller network than this one.
    SAVING = "saving"
    #: The time of a hold or a trial is over.
    OVER = "over"
    #: The device is above its temperature.
    HOT = "hot"
    #: The 99th percentile of this network misses the deadline.
    LATE = "late"
    #: The next larger network would keep the deadline, and the device is cool.
    ROOM = "room"
    #: None of these.
    STEADY = "steady"


class Move(enum.StrEnum):
    """What follows."""

    STAY = "stay"
    #: The next smaller network takes over, and is held.
    SMALLER = "smaller"
    #: Likewise, and held twice as long as the last time.
    SMALLER_LONGER = "smaller_longer"
    #: The next larger network takes over, on trial.
    LARGER = "larger"
    #: The trial is passed: the next hold is the shortest again.
    CALM = "calm"


_DOWN = (Position.HELD, Move.SMALLER)
_BACK = (Position.HELD, Move.SMALLER_LONGER)

#: {position: {event: (next position, move)}}.
TABLE: dict[Position, dict[Event, tuple[Position, Move]]] = {
    Position.SETTLED: {
        Event.SAVING: _DOWN,
        Event.HOT: _DOWN,
        Event.LATE: _DOWN,
        Event.ROOM: (Position.TRIAL, Move.LARGER),
        Event.STEADY: (Position.SETTLED, Move.STAY),
    },
    Position.HELD: {
        Event.SAVING: _DOWN,
        Event.OVER: (Position.SETTLED, Move.STAY),
        Event.HOT: (Position.HELD, Move.STAY),
        Event.LATE: (Position.HELD, Move.STAY),
        Event.ROOM: (Position.HELD, Move.STAY),
        Event.STEADY: (Position.HELD, Move.STAY),
    },
    Position.TRIAL: {
        Event.SAVING: _DOWN,
        Event.OVER: (Position.SETTLED, Move.CALM),
        Event.HOT: _BACK,
        Event.LATE: _BACK,
        Event.ROOM: (Position.TRIAL, Move.STAY),
        Event.STEADY: (Position.TRIAL, Move.STAY),
    },
}


def step(position: Position, event: Event) -> tuple[Position, Move]:
    """What follows ``event``.

    Raises:
        IllegalEventError: The position has no such row; nothing has changed.
    """
    try:
        return TABLE[position][event]
    except KeyError:
        raise IllegalEventError("a ladder", position, event) from None
