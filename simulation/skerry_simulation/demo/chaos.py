"""Kill random processes of a run with SIGKILL, to show that the loop finishes all the same."""

from __future__ import annotations

import random
import threading

import psutil

from skerry_simulation.demo.progress import Progress
from skerry_simulation.processes import DaemonGroup

#: Seconds between kills.
PERIOD_S = 8.0


class Chaos:
    """One thread that kills one process of the run every :data:`PERIOD_S` seconds.

    Any process may be hit: the control plane's supervisor, broker, SuperLink, API, controllers, jobs, and of an agent
    its supervisor, control, serving and training. It pauses while :meth:`pause` holds, for phases that count errors.
    """

    def __init__(self, group: DaemonGroup, progress: Progress, *, seed: int) -> None:
        self.kills: list[str] = []
        self._group = group
        self._progress = progress
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._thread = threading.Thread(target=self._work, name="chaos", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has ended."""
        self._stop.set()
        self._running.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def pause(self) -> None:
        """Kill nothing until :meth:`resume`."""
        self._running.clear()

    def resume(self) -> None:
        """Go on."""
        self._running.set()

    def _work(self) -> None:
        while not self._stop.wait(PERIOD_S):
            if self._running.is_set():
                self._kill_one()

    def _kill_one(self) -> None:
        daemons = [daemon for daemon in self._group.daemons.values() if daemon.alive]
        if not daemons:
            return
        daemon = self._random.choice(daemons)
        assert daemon.process is not None
        try:
            root = psutil.Process(daemon.process.pid)
            victim = self._random.choice([root, *root.children(recursive=True)])
            name = f"{daemon.name}: {' '.join(victim.cmdline()[:4])[-80:]}"
            victim.kill()
        except psutil.NoSuchProcess:
            return
        self.kills.append(name)
        self._progress.say(f"chaos killed {name}")
