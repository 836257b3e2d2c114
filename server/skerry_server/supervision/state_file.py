"""``run/state.json``: what runs, for everybody who did not start it. Replaced whole, at every change.

A process is named by its identifier and the moment it was started, so that a recycled identifier is never taken for
it. The file is removed by a clean stop; after a crash it stays and names processes that are not alive.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from skerry_server.config import ServerLayout
from skerry_server.files import write_atomically

_CLOCK_TOLERANCE_S = 5.0


@dataclass(frozen=True)
class ProcessState:
    """One process of the tree.

    Attributes:
        name: What it is.
        pid: Its identifier; 0 while it waits to be started again.
        created_s: When the system says that it was started, seconds since 1970.
        restarts: How often it was started again.
        ready: Whether it has answered its readiness check since it was started.
        last_exit: How it ended last time; empty if it never did.
    """

    name: str
    pid: int
    created_s: float = 0.0
    restarts: int = 0
    ready: bool = False
    last_exit: str = ""

    def alive(self) -> bool:
        """Whether that very process exists and has not ended."""
        return same_process(self.pid, self.created_s)


@dataclass(frozen=True)
class TreeState:
    """The whole tree.

    Attributes:
        pid: The supervisor's identifier.
        created_s: When it was started, seconds since 1970.
        url: Console and REST API.
        grpc: host:port of the gRPC API.
        broker: host:port of MQTT for the control plane and its operator, on loopback.
        superlink: host:port of the Flower SuperLink.
        ready: Whether every process has been ready.
        processes: The children.
        broker_tls: host:port of MQTT for devices.
        device_api: URL of the device API.
    """

    pid: int
    created_s: float
    url: str
    grpc: str
    broker: str
    superlink: str
    ready: bool = False
    processes: list[ProcessState] = field(default_factory=list)
    broker_tls: str = ""
    device_api: str = ""

    def alive(self) -> bool:
        """Whether the supervisor exists."""
        return same_process(self.pid, self.created_s)


def process_created_s(pid: int) -> float | None:
    """When a living process was started; ``None`` if there is none (a zombie counts as none)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def same_process(pid: int, created_s: float) -> bool:
    """Whether the process that had ``pid`` and was started at ``created_s`` lives."""
    found = process_created_s(pid) if pid > 0 else None
    # The system counts from its boot, whose time of day moves when the clock is set.
    return found is not None and abs(found - created_s) < _CLOCK_TOLERANCE_S


def state_path(layout: ServerLayout) -> Path:
    """Where the file is."""
    return layout.run / "state.json"


def write_state(layout: ServerLayout, state: TreeState) -> None:
    """Replace the file; readable by the owner only."""
    write_atomically(state_path(layout), (json.dumps(asdict(state)) + "\n").encode())


def read_state(layout: ServerLayout) -> TreeState | None:
    """The file's content; ``None`` if there is no file or it is not one of ours."""
    try:
        document = json.loads(state_path(layout).read_text())
        processes = [ProcessState(**entry) for entry in document.pop("processes")]
        return TreeState(**document, processes=processes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remove_state(layout: ServerLayout) -> None:
    """After a clean stop."""
    state_path(layout).unlink(missing_ok=True)
