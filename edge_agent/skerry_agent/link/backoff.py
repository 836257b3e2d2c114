"""How long a device waits before it tries to connect again.

Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015): uniform in
[0, min(ceiling, 2^failures)] seconds. The number of failures survives restarts, so that a fleet that restarts again
and again does not storm the broker.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

from skerry_agent.files import DISK, Disk

log = logging.getLogger(__name__)
#: Failures beyond this one do not make the wait longer than any ceiling in use.
MAXIMUM_FAILURES = 16


def reconnect_delay(failures: int, *, ceiling_s: float, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after ``failures`` failures in a row; none before the first try."""
    if failures <= 0:
        return 0.0
    return uniform(0.0, min(ceiling_s, 2.0 ** min(failures, MAXIMUM_FAILURES)))


class Backoff:
    """Counts failures in a file; owned by one thread."""

    def __init__(
        self,
        path: Path,
        *,
        ceiling_s: float,
        uniform: Callable[[float, float], float] = random.uniform,
        disk: Disk = DISK,
    ) -> None:
        self._path = path
        self._ceiling_s = ceiling_s
        self._uniform = uniform
        self._disk = disk
        self.failures = self._read()

    def _read(self) -> int:
        try:
            return max(0, min(MAXIMUM_FAILURES, int(json.loads(self._path.read_bytes())["failures"])))
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def delay(self) -> float:
        """Seconds to wait now."""
        return reconnect_delay(self.failures, ceiling_s=self._ceiling_s, uniform=self._uniform)

    def failed(self) -> None:
        """An attempt failed, or a connection broke."""
        self._store(min(MAXIMUM_FAILURES, self.failures + 1))

    def succeeded(self) -> None:
        """The broker answered."""
        self._store(0)

    def _store(self, failures: int) -> None:
        if failures == self.failures:
            return
        self.failures = failures
        try:
            self._disk.make_folder(self._path.parent)
            self._disk.write_atomically(self._path, json.dumps({"failures": failures}).encode())
        except OSError as error:
            log.warning("the count of failed connections cannot be kept: %s", error)
