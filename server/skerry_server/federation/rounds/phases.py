"""Where the time of a round goes, and which phase has had too much of it. No I/O.

A phase of computation cannot be interrupted from within its own thread: :meth:`Phases.check` is called between its
steps and ends the round there. Collecting has the deadline of the round, committing that of an absent database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from skerry_server.federation.campaign_machine import PHASES

#: Shortest deadline of a phase of computation (seconds); a round that may last longer gives it as long.
COMPUTING_S: Final = 600.0


class PhaseOverrunError(Exception):
    """A phase took longer than it may.

    Attributes:
        phase: Its name.
        limit_s: What it had (seconds).
    """

    def __init__(self, phase: str, limit_s: float) -> None:
        self.phase = phase
        self.limit_s = limit_s
        super().__init__(f"{phase} ({PHASES[phase]}) took longer than {limit_s:g} s")


class Phases:
    """The phases of one round."""

    def __init__(
        self,
        *,
        limit_s: float = COMPUTING_S,
        clock: Callable[[], float] = time.monotonic,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        """``on_phase`` hears of each phase as it begins; ``limit_s`` is the deadline of one (seconds)."""
        self._limit_s = limit_s
        self._clock = clock
        self._on_phase = on_phase
        self._name = ""
        self._began = clock()
        #: Phase to seconds.
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to the phase ``name``, one of :data:`~.campaign_machine.PHASES`."""
        if name not in PHASES:
            raise ValueError(f"no phase {name!r}")
        self._name, self._began = name, self._clock()
        self._on_phase(name)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - self._began
            self._name = ""

    def check(self) -> None:
        """Raise PhaseOverrunError when the current phase has had its time."""
        if self._name and self._clock() - self._began > self._limit_s:
            raise PhaseOverrunError(self._name, self._limit_s)
