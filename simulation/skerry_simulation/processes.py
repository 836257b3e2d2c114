"""Daemons of a run, kept alive as systemd would keep them: started again when they die, stopped together.

A daemon that dies more than :data:`RESTART_LIMIT` times within :data:`RESTART_WINDOW_S` is given up, as systemd's
``StartLimitBurst`` does, and the run learns of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from skerry_simulation.errors import StepError

RESTART_LIMIT = 8
RESTART_WINDOW_S = 60.0
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask Linux to send SIGTERM when the parent dies (prctl(2)); runs between fork and exec."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Daemon:
    """One command that should be running."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environment = environment
        self.starts = 0
        self.wanted = False
        self.given_up = False
        self.process: subprocess.Popen[bytes] | None = None
        self._recent: deque[float] = deque(maxlen=RESTART_LIMIT)

    @property
    def alive(self) -> bool:
        """Whether the process runs now."""
        return self.process is not None and self.process.poll() is None

    def start(self, *, bound: bool = True) -> None:
        """Start it; if ``bound``, the death of the thread that calls stops it too (prctl(2))."""
        now = time.monotonic()
        if len(self._recent) == RESTART_LIMIT and now - self._recent[0] < RESTART_WINDOW_S:
            self.given_up = True
            return
        self._recent.append(now)
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=_die_with_parent if bound else None,
            )

    def tail(self, lines: int = 12) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


class DaemonGroup:
    """Daemons with one owner: a watching thread that starts the dead ones again.

    Use as a context manager; leaving it stops every daemon, with a deadline, then by SIGKILL.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.daemons: dict[str, Daemon] = {}
        self.keep = keep
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="daemon-watch", daemon=True)

    def __enter__(self) -> DaemonGroup:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join(timeout=10)
        if not self.keep:
            self.stop_all()

    def start(self, daemon: Daemon) -> None:
        """Start a daemon and keep it running."""
        with self._lock:
            self.daemons[daemon.name] = daemon
            daemon.wanted = True
            daemon.start(bound=not self.keep)

    def hold(self, name: str) -> None:
        """Kill a daemon at once (SIGKILL) and leave it dead until :meth:`release`."""
        with self._lock:
            daemon = self.daemons[name]
            daemon.wanted = False
            if daemon.process is not None:
                daemon.process.kill()
                daemon.process.wait(timeout=30)

    def release(self, name: str) -> None:
        """Start a held daemon again."""
        with self._lock:
            daemon = self.daemons[name]
            daemon.wanted = True
            daemon.start(bound=not self.keep)

    def check(self) -> None:
        """Raise StepError if a daemon was given up."""
        for daemon in list(self.daemons.values()):
            if daemon.given_up:
                raise StepError(f"keeping {daemon.name} running", f"it died {RESTART_LIMIT} times:\n{daemon.tail()}")

    def stop_all(self, *, deadline_s: float = 30.0) -> None:
        """SIGTERM to all, then SIGKILL to what is left after the deadline."""
        with self._lock:
            running = [daemon for daemon in self.daemons.values() if daemon.alive]
            for daemon in self.daemons.values():
                daemon.wanted = False
            for daemon in running:
                assert daemon.process is not None
                daemon.process.terminate()
            end = time.monotonic() + deadline_s
            for daemon in running:
                assert daemon.process is not None
                try:
                    daemon.process.wait(timeout=max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    daemon.process.kill()
                    daemon.process.wait(timeout=10)

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            with self._lock:
                for daemon in self.daemons.values():
                    if daemon.wanted and not daemon.alive and not daemon.given_up:
                        daemon.start(bound=not self.keep)
