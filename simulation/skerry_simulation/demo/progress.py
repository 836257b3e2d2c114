"""What the demo says while it runs: one line an event, with the time, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from skerry_simulation.demo.result import Moment


class Progress:
    """Tells the terminal and keeps the timeline."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.moments: list[Moment] = []
        self.phase = ""
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @contextmanager
    def during(self, phase: str, text: str) -> Iterator[None]:
        """A phase: its name and what it is for."""
        self.phase = phase
        self.say(text, bold=True)
        yield

    def say(self, text: str, *, bold: bool = False) -> None:
        """One event."""
        moment = Moment(round(self.elapsed_s, 1), self.phase, text)
        self.moments.append(moment)
        style = "bold" if bold else ""
        self.console.print(f"[dim]{moment.at_s:6.1f} s[/dim]  [cyan]{self.phase:<10}[/cyan] ", end="")
        self.console.print(text, style=style, markup=False)
