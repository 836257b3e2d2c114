"""How long a device waits before it tries to connect again.

Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015): uniform in
[0, min(ceiling, 2^failures)] seconds, or in [0, spread] if the control plane asks for a longer one: it knows how many
devices would come back at once. The number of failures survives restarts, and so does the fact that a connection
stood: a fleet whose power comes back, or that restarts again and again, does not storm the broker. The ceiling is the
device's own setting and bounds both.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

from skerry_agent.files import DISK, Disk

log = logging.getLogger(__name__)
#: Failures beyond this one do not make the wait longer than any ceiling in use.
MAXIMUM_FAILURES = 16
#: Longest spread that a control plane may ask for (ms): a day.
MAXIMUM_SPREAD_MS = 86_400_000


def reconnect_delay(
    failures: int, *, ceiling_s: float, uniform: Callable[[float, float], float], spread_s: float = 0.0
) -> float:
    """Seconds to wait after ``failures`` failures in a row; none before the first try.

    Args:
        failures: Attempts that failed, and connections that broke.
        ceiling_s: Longest wait (seconds).
        uniform: Draws between two bounds.
        spread_s: Shortest range that the control plane wants (seconds).
    """
    if failures <= 0:
        return 0.0
    return uniform(0.0, min(ceiling_s, max(spread_s, 2.0 ** min(failures, MAXIMUM_FAILURES))))


class ReconnectSpread:
    """The spread that the control plane asked for last; kept in a file, shared by the connections of a process."""

    def __init__(self, path: Path, *, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._lock = threading.Lock()
        self._spread_ms = _number(path, "spread_ms", MAXIMUM_SPREAD_MS)

    @property
    def seconds(self) -> float:
        """The spread (seconds); 0: none is asked for."""
        return self._spread_ms / 1000

    def learn(self, spread_ms: int) -> None:
        """Take the spread of a desired state that was accepted (ms)."""
        with self._lock:
            spread_ms = max(0, min(MAXIMUM_SPREAD_MS, spread_ms))
            if spread_ms != self._spread_ms:
                self._spread_ms = spread_ms
                _store(self._path, {"spread_ms": spread_ms}, self._disk)


class Backoff:
    """Counts failures in a file; owned by one thread."""

    def __init__(
        self,
        path: Path | None,
        *,
        ceiling_s: float,
        spread_s: Callable[[], float] = lambda: 0.0,
        uniform: Callable[[float, float], float] = random.uniform,
        disk: Disk = DISK,
    ) -> None:
        """Read the count of the process before; a connection that stood when it died is one that broke.

        Args:
            path: JSON file; of one backoff. None keeps nothing: for a peer that no fleet shares.
            ceiling_s: Longest wait (seconds).
            spread_s: Shortest range that the control plane wants (seconds), asked at every wait.
            uniform: Draws between two bounds.
            disk: File system.
        """
        self._path = path
        self._ceiling_s = ceiling_s
        self._spread_s = spread_s
        self._uniform = uniform
        self._disk = disk
        self._connected = path is not None and _number(path, "connected", 1) == 1
        self.failures = 0 if path is None else _number(path, "failures", MAXIMUM_FAILURES) + self._connected

    def delay(self) -> float:
        """Seconds to wait now."""
        return reconnect_delay(
            self.failures, ceiling_s=self._ceiling_s, uniform=self._uniform, spread_s=self._spread_s()
        )

    def failed(self) -> None:
        """An attempt failed, or a connection broke."""
        self._keep(min(MAXIMUM_FAILURES, self.failures + 1), connected=False)

    def succeeded(self, *, connected: bool = False) -> None:
        """The peer answered; ``connected``: by a connection that stands until :meth:`failed` or :meth:`ended`."""
        self._keep(0, connected=connected)

    def ended(self) -> None:
        """The connection was closed on purpose: the next process need not wait."""
        self._keep(self.failures, connected=False)

    def _keep(self, failures: int, *, connected: bool) -> None:
        if (failures, connected) == (self.failures, self._connected):
            return
        self.failures, self._connected = failures, connected
        if self._path is not None:
            _store(self._path, {"failures": failures, "connected": int(connected)}, self._disk)


def _number(path: Path, name: str, most: int) -> int:
    try:
        return max(0, min(most, int(json.loads(path.read_bytes())[name])))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return 0


def _store(path: Path, document: dict[str, int], disk: Disk) -> None:
    try:
        disk.make_folder(path.parent)
        disk.write_atomically(path, json.dumps(document).encode())
    except OSError as error:
        log.warning("%s cannot be kept: %s", path.name, error)
