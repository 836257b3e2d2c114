"""State machines as tables {state: {event: next}}: finding a row, and what is said when there is none. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

S = TypeVar("S", bound=enum.StrEnum)
E = TypeVar("E", bound=enum.StrEnum)


class IllegalEventError(Exception):
    """An event that its state has no row for; nothing has changed.

    Attributes:
        subject: What the machine is about, with its article.
        state: The state.
        event: The event.
    """

    def __init__(self, subject: str, state: enum.StrEnum, event: enum.StrEnum) -> None:
        self.subject = subject
        self.state = state
        self.event = event
        super().__init__(f"{subject} that is {state.value} takes no {event.value}")


def next_state(table: Mapping[S, Mapping[E, S]], state: S, event: E, *, subject: str) -> S:
    """The state after ``event``.

    Raises:
        IllegalEventError: ``state`` has no such row.
    """
    try:
        return table[state][event]
    except KeyError:
        raise IllegalEventError(subject, state, event) from None
