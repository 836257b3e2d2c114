"""Kill a random process in each phase of a run that lasts long enough: the loop must finish all the same."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import psutil

from skerry_simulation.demo.progress import Progress
from skerry_simulation.processes import DaemonGroup

#: How far into a phase its kill comes (seconds).
EARLIEST_S, LATEST_S = 0.5, 6.0
_TICK_S = 0.1


class Chaos:
    """One thread that kills one process of the run in each phase that is announced to it.

    Any process may be hit: the control plane's supervisor, broker, SuperLink, API, controllers, jobs, and of an agent
    its supervisor, control, serving and training. Which one and when is drawn from the seed.
    """

    def __init__(self, group: DaemonGroup, progress: Progress, *, seed: int) -> None:
        self.kills: list[str] = []
        self._group = group
        self._progress = progress
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._due: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chaos", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def phase_began(self) -> None:
        """A phase has begun in which one process shall die."""
        with self._lock:
            self._due = time.monotonic() + self._random.uniform(EARLIEST_S, LATEST_S)

    def calm(self) -> None:
        """A phase has begun in which none shall die, for it counts errors of the devices' own."""
        with self._lock:
            self._due = None

    def _work(self) -> None:
        while not self._stop.wait(_TICK_S):
            with self._lock:
                if self._due is not None and time.monotonic() >= self._due and self._kill_one():
                    self._due = None

    def _kill_one(self) -> bool:
        daemons = [daemon for daemon in self._group.daemons.values() if daemon.alive]
        if not daemons:
            return False
        daemon = self._random.choice(daemons)
        assert daemon.process is not None
        try:
            root = psutil.Process(daemon.process.pid)
            victim = self._random.choice([root, *root.children(recursive=True)])
            words = [Path(word).name for word in victim.cmdline()[:4]]
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        self.kills.append(f"{daemon.name}: {' '.join(words)}")
        self._progress.say(f"chaos killed {self.kills[-1]}")
        return True
