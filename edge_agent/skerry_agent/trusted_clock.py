"""What time it is, on a machine whose clock may be wrong.

Invariants: the floor is a moment that a verified signature vouched for, it only rises, and it survives restarts; a
clock more than :data:`SLACK_MS` behind it is not believed. A clock that is ahead leaves no trace: when it comes back,
so does the time told here. Nothing else of the agent may refuse a peer by the local clock.

>>> clock = TrustedClock(layout.trust / "clock.json")  # doctest: +SKIP
>>> clock.learn(state.issued_unix_ms)                  # after its signature held  # doctest: +SKIP
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from skerry_agent.files import DISK, Disk

log = logging.getLogger(__name__)
#: A clock that is further behind the floor than this is not believed (ms).
SLACK_MS = 86_400_000
#: The floor is written down when it has risen by more than this (ms).
KEEP_MS = 60_000
#: Latest moment that can be told (ms): the year 9000.
LATEST_MS = 221_845_392_000_000


def trusted_ms(wall_ms: int, floor_ms: int, since_ms: int) -> int:
    """The moment to go by.

    Args:
        wall_ms: The local clock (Unix ms).
        floor_ms: Latest moment that a signature vouched for (Unix ms).
        since_ms: Time that has passed since then at least (ms).
    """
    return wall_ms if wall_ms >= floor_ms - SLACK_MS else floor_ms + since_ms


class TrustedClock:
    """May be used by any thread."""

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        disk: Disk = DISK,
    ) -> None:
        """Reads the floor of an earlier process, if there is one.

        Args:
            path: JSON file of the floor; written by one process.
            wall: Seconds since 1970, as this machine believes.
            monotonic: Seconds that only go forward.
            disk: File system.
        """
        self._path = path
        self._wall = wall
        self._monotonic = monotonic
        self._disk = disk
        self._lock = threading.Lock()
        self._floor_ms = self._kept_ms = self._read()
        self._learnt_at = monotonic()

    @property
    def floor_ms(self) -> int:
        """Latest moment that a signature vouched for (Unix ms); 0 before the first."""
        return self._floor_ms

    @property
    def believable(self) -> bool:
        """Whether the local clock is not behind what a signature vouched for."""
        return self._wall() * 1000 >= self._floor_ms - SLACK_MS

    def now(self) -> datetime:
        """The local clock, unless it is far behind the floor: then the floor and the time since it was learnt (UTC)."""
        with self._lock:
            since_ms = round((self._monotonic() - self._learnt_at) * 1000)
            now_ms = trusted_ms(round(self._wall() * 1000), self._floor_ms, since_ms)
        return datetime.fromtimestamp(min(now_ms, LATEST_MS) / 1000, UTC)

    def learn(self, signed_unix_ms: int) -> None:
        """Take a moment from a message whose signature was verified; an earlier one than the floor changes nothing.

        Args:
            signed_unix_ms: When it was signed (Unix ms); a moment after the year 9000 is none and is ignored.
        """
        with self._lock:
            if not self._floor_ms < signed_unix_ms <= LATEST_MS:
                return
            self._floor_ms = signed_unix_ms
            self._learnt_at = self._monotonic()
            if signed_unix_ms - self._kept_ms > KEEP_MS:
                self._keep(signed_unix_ms)

    def _keep(self, floor_ms: int) -> None:
        try:
            self._disk.make_folder(self._path.parent)
            self._disk.write_atomically(self._path, json.dumps({"floor_ms": floor_ms}).encode())
        except OSError as error:
            log.warning("%s: the signed time cannot be kept: %s", self._path, error)
            return
        self._kept_ms = floor_ms

    def _read(self) -> int:
        try:
            floor_ms = json.loads(self._path.read_bytes())["floor_ms"]
            if type(floor_ms) is int and 0 <= floor_ms <= LATEST_MS:
                return floor_ms
            raise ValueError(f"floor_ms {floor_ms!r:.40}")
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s: %s: the signed time is learnt anew", self._path, error)
            return 0
