"""Waiting for something in the control plane to end, with a line that says where it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.markup import escape

from skerry_server.cli.output import Document, Output
from skerry_server.errors import PlatformError, SkerryError

#: Seconds between two looks.
PERIOD_S = 0.5
#: How long the control plane may be away while somebody waits (seconds).
PATIENCE_S = 60.0


class FailedError(SkerryError):
    """What was waited for ended badly, or did not end in time."""


def wait_for(
    look: Callable[[], Document],
    *,
    ended: Callable[[Document], bool],
    describe: Callable[[Document], str],
    what: str,
    timeout_s: float,
    out: Output,
) -> Document:
    """Look again and again until ``ended``.

    A control plane that restarts meanwhile is waited for, for :data:`PATIENCE_S` seconds at most.

    Args:
        look: Reads the thing.
        ended: Whether it is in a final state.
        describe: One line about where it is; shown as it changes.
        what: What is waited for, for the error.
        timeout_s: Deadline.
        out: Progress goes to its error console, so that standard output stays clean.

    Raises:
        FailedError: The deadline passed; the thing goes on.
        PlatformError: The control plane stays away.
    """
    started = time.monotonic()
    deadline = started + timeout_s
    last_answer = started
    said = ""
    with out.errors.status(f"waiting for {what}") as status:
        while True:
            try:
                document = look()
                last_answer = time.monotonic()
            except PlatformError:
                if time.monotonic() - last_answer > PATIENCE_S:
                    raise
                document = None
            if document is not None:
                line = describe(document)
                if line != said and not out.errors.is_terminal:
                    out.errors.print(line, markup=False)
                said = line
                if ended(document):
                    return document
            now = time.monotonic()
            if now > deadline:
                raise FailedError(f"{what} has not ended within {timeout_s:g} s; it goes on ({said})")
            status.update(f"{escape(said)}  [dim]{now - started:.0f} s[/dim]")
            time.sleep(min(PERIOD_S, max(0.0, deadline - now)))
