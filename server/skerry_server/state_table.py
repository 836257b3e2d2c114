"""State machines as tables {state: {event: next}}: finding a row, and what is said when there is none. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class IllegalEventError(RuntimeError):
    """The event has no row in that state; nothing was changed. Each machine has a subclass with its table.

    Attributes:
        subject: What the machine is about, with its article.
        table: State to event to next state.
        state: Where the machine stands.
        event: What came.
    """

    subject: ClassVar[str]
    table: ClassVar[Mapping[str, Mapping[str, str]]]

    def __init__(self, state: str, event: str) -> None:
        self.state = state
        self.event = event
        allowed = ", ".join(self.table.get(state, {})) or "no event"
        super().__init__(f"{self.subject} in state {state!r} takes {allowed}, got {event!r}")

    @classmethod
    def next_state(cls, state: str, event: str) -> str:
        """State after ``event`` in the machine's table; raises this error when there is no such row."""
        following = cls.table.get(state, {}).get(event)
        if following is None:
            raise cls(state, event)
        return following
