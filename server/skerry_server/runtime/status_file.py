"""``run/controllers.json``: how the controllers are doing, for ``skerry status`` and the console.

Replaced whole every few seconds by the runtime process; a file that has grown old means that the process hangs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from skerry_server.clock import now_ms
from skerry_server.config import ServerLayout
from skerry_server.controllers import ControllerStatus
from skerry_server.files import write_atomically

#: A file that is older was written by a process that hangs or is gone (milliseconds).
STALE_AFTER_MS = 30_000


@dataclass(frozen=True)
class RuntimeStatus:
    """What the runtime process says of itself.

    Attributes:
        pid: Its process identifier.
        written_ms: When it said so.
        broker_connected: Whether its link to the broker stands.
        broker_error: Why it does not; empty if it does.
        controllers: Each controller.
        counts: Messages from devices by outcome, since the process started.
        waits: What is held back and why, a sentence each.
    """

    pid: int
    written_ms: int
    broker_connected: bool
    broker_error: str
    controllers: list[ControllerStatus] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)

    def stale(self, at_ms: int) -> bool:
        """Whether it is too old to be believed."""
        return at_ms - self.written_ms > STALE_AFTER_MS


def status_path(layout: ServerLayout) -> Path:
    """Where the file is."""
    return layout.run / "controllers.json"


def write_runtime_status(
    layout: ServerLayout,
    *,
    broker_connected: bool,
    broker_error: str,
    controllers: Sequence[ControllerStatus],
    counts: dict[str, int],
    waits: Sequence[str] = (),
) -> None:
    """Replace the file."""
    status = RuntimeStatus(
        os.getpid(), now_ms(), broker_connected, broker_error, list(controllers), counts, list(waits)
    )
    write_atomically(status_path(layout), json.dumps(asdict(status)).encode())


def read_runtime_status(layout: ServerLayout) -> RuntimeStatus | None:
    """The file's content; ``None`` if there is none or it is not one of ours."""
    try:
        document = json.loads(status_path(layout).read_text())
        controllers = [ControllerStatus(**entry) for entry in document.pop("controllers")]
        return RuntimeStatus(**document, controllers=controllers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def runtime_ready(layout: ServerLayout) -> Callable[[int], bool]:
    """Readiness check: the process with that identifier has written the file and has been connected to the broker."""

    def check(pid: int) -> bool:
        status = read_runtime_status(layout)
        return status is not None and status.pid == pid and status.broker_connected

    return check
