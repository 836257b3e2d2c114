"""Starts the three processes of the agent, starts them again when they die or hang, stops them in order. Imports
nothing heavy.

A process that does not move any more is as bad as a dead one: control and serving beat (:mod:`skerry_agent.heartbeat`),
and one that stays silent is killed. What watches the supervisor itself is systemd, where it is there
(:mod:`skerry_agent.service_manager`), and what watches a release that takes the whole machine down is the boot counter
(:mod:`skerry_agent.update.boots`).

Children die with the supervisor (:mod:`skerry_agent.launch`), so that one that is started again never meets the
children of the one before. One supervisor per data directory, by a lock that the kernel releases whatever happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from skerry_agent import heartbeat
from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.files import rotate, write_atomically
from skerry_agent.heartbeat import HeartbeatMonitor
from skerry_agent.launch import launch_command
from skerry_agent.service_manager import VARIABLES, ServiceManager
from skerry_agent.update.boots import count_start, stopped_in_order

log = logging.getLogger(__name__)
#: Waits before a process that died is started again: doubling from the first to the last (seconds).
RESTART_S = (0.2, 30.0)
#: A process that ran this long starts again without waiting longer than the first time (seconds).
SETTLED_S = 60.0
#: How often the supervisor looks (seconds), and how large a log may grow (bytes).
LOOK_S = 0.2
LOG_BYTES = 8 << 20
ROTATE_S = 30.0
#: How long a watched process may take from its start to its first beat (seconds): serving may build an engine first.
FIRST_BEAT_S = 600.0


@dataclass(frozen=True)
class ChildSpec:
    """A process to be kept running.

    Attributes:
        name: "control", "serving" or "training".
        arguments: Of the interpreter.
        stop_s: How long it may take to stop after SIGTERM (seconds).
        environment: Added to the environment.
        silent_s: A process that beats is killed after so long without a beat (seconds); 0: it is not watched.
        first_beat_s: How long it may take to the first beat (seconds).
    """

    name: str
    arguments: tuple[str, ...]
    stop_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    silent_s: float = 0.0
    first_beat_s: float = FIRST_BEAT_S


def agent_children(root: Path) -> list[ChildSpec]:
    """The processes of one agent, in the order in which they start; they stop in the reverse order.

    Training lowers its own priority and computes with one thread, so that it never takes a core from an answer.
    Few malloc arenas keep what threads freed from staying resident; serving's numpy only copies, so it needs no pool.
    One turn of control may hash gigabytes from a slow card, which is why it may be silent for so much longer.
    """
    lean = {"MALLOC_ARENA_MAX": "2"}
    one_thread = lean | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return [
        ChildSpec("serving", ("-m", "skerry_agent.serving", str(root)), 15.0, one_thread, silent_s=60.0),
        ChildSpec("control", ("-m", "skerry_agent.control", str(root)), 20.0, lean, silent_s=600.0),
        ChildSpec("training", ("-m", "skerry_agent.training", str(root)), 10.0, one_thread),
    ]


def restart_delay(deaths: int) -> float:
    """Seconds before the start after ``deaths`` quick deaths in a row."""
    first, last = RESTART_S
    return float(min(last, first * 2.0 ** min(deaths, 16)))


class _Child:
    def __init__(self, spec: ChildSpec, log_file: Path) -> None:
        self.spec = spec
        self.log_file = log_file
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0
        self.started = 0.0
        self.start_at = 0.0
        self._monitor: HeartbeatMonitor | None = None
        self._silent_at = 0.0

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environment |= {"PYTHONUNBUFFERED": "1"} | dict(self.spec.environment)
        descriptors: tuple[int, ...] = ()
        if self.spec.silent_s:
            self._monitor = HeartbeatMonitor()
            descriptors = (self._monitor.descriptor,)
            environment[heartbeat.VARIABLE] = str(self._monitor.descriptor)
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                launch_command(self.spec.arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                pass_fds=descriptors,
            )
        if self._monitor is not None:
            self._monitor.close_writer()
        self.started = time.monotonic()
        self._silent_at = self.started + self.spec.first_beat_s
        log.info("%s started, pid %d", self.spec.name, self.process.pid)

    def look(self, now: float) -> bool:
        """Notice a death or a hang, start again when it is time; returns whether something changed."""
        if self.process is None:
            if now < self.start_at:
                return False
            self.start()
            return True
        self._listen(self.process, now)
        status = self.process.poll()
        if status is None:
            return False
        self.deaths = 0 if now - self.started > SETTLED_S else self.deaths + 1
        delay = restart_delay(max(0, self.deaths - 1))
        how = f"signal {-status}" if status < 0 else f"status {status}"
        log.warning("%s ended with %s: starts again in %.1f s (%s)", self.spec.name, how, delay, self.log_file)
        self._forget()
        self.start_at = now + delay
        return True

    def _listen(self, process: subprocess.Popen[bytes], now: float) -> None:
        """Kill a process that has not moved for too long: SIGKILL also ends one that was stopped."""
        if self._monitor is None:
            return
        if self._monitor.heard():
            self._silent_at = now + self.spec.silent_s
        elif now > self._silent_at and process.poll() is None:
            log.error("%s, pid %d, does not move any more: killed", self.spec.name, process.pid)
            process.kill()
            self._silent_at = now + self.spec.stop_s

    def _forget(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        self._monitor = self.process = None

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=self.spec.stop_s)
        except subprocess.TimeoutExpired:
            log.error("%s did not stop within %.0f s: killed", self.spec.name, self.spec.stop_s)
            self.process.kill()
            self.process.wait(timeout=self.spec.stop_s)
        log.info("%s stopped", self.spec.name)
        self._forget()


def state_file(layout: AgentLayout) -> Path:
    """JSON ``{"pid", "processes": [{"name", "pid"}]}`` of the running agent."""
    return layout.run / "state.json"


def is_alive(pid: object) -> bool:
    """Whether a process of that identifier is there; False for what is no identifier."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lock(layout: AgentLayout) -> IO[str]:
    stream = (layout.run / "agent.lock").open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise DeviceError(
            f"another agent runs on {layout.root}", remedy="stop it first, or use another --data-dir"
        ) from error
    return stream


def supervise(
    layout: AgentLayout,
    *,
    children: Callable[[Path], Sequence[ChildSpec]] = agent_children,
    stop: threading.Event | None = None,
) -> None:
    """Keep the agent's processes running until SIGTERM or SIGINT.

    Args:
        layout: Data directory of an enrolled device.
        children: What to run.
        stop: Ends it instead of a signal.

    Raises:
        DeviceError: Another agent runs there, or the folder cannot be written.
    """
    stopping = stop or threading.Event()
    if stop is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: stopping.set())
    try:
        for folder in (layout.run, layout.logs):
            folder.mkdir(parents=True, exist_ok=True)
        os.chmod(layout.run, 0o700)  # noqa: PTH101
        lock = _lock(layout)
    except OSError as error:
        raise DeviceError(f"{layout.root}: {error.strerror}", remedy="use a folder that can be written") from error
    manager = ServiceManager()
    with lock, contextlib.closing(manager):
        _count(count_start, layout)
        running = [_Child(spec, layout.logs / f"{spec.name}.log") for spec in children(layout.root.absolute())]
        rotate_at, ready = 0.0, False
        try:
            while not stopping.is_set():
                now = time.monotonic()
                changes = [child.look(now) for child in running]
                if any(changes):
                    _write_state(layout, running)
                if not ready and all(child.process is not None for child in running):
                    ready = True
                    manager.ready()
                manager.alive()
                if now >= rotate_at:
                    _rotate(running)
                    rotate_at = now + ROTATE_S
                stopping.wait(LOOK_S)
        finally:
            log.info("the agent stops")
            manager.stopping()
            for child in reversed(running):
                child.stop()
            if stopping.is_set():
                _count(stopped_in_order, layout)
            state_file(layout).unlink(missing_ok=True)


def _count(change: Callable[[AgentLayout], None], layout: AgentLayout) -> None:
    try:
        change(layout)
    except OSError as error:
        # A full disk must not keep the agent down.
        log.error("the boot counter cannot be kept: %s", error)


def _rotate(children: Sequence[_Child]) -> None:
    for child in children:
        try:
            rotate(child.log_file, limit=LOG_BYTES)
        except OSError as error:
            log.warning("%s cannot be shortened: %s", child.log_file, error)


def _write_state(layout: AgentLayout, children: Sequence[_Child]) -> None:
    processes = [{"name": child.spec.name, "pid": child.process.pid} for child in children if child.process is not None]
    document = {"pid": os.getpid(), "processes": processes}
    try:
        write_atomically(state_file(layout), json.dumps(document).encode())
    except OSError as error:
        # A full disk must not take the agent down.
        log.error("%s cannot be written: %s", state_file(layout), error)
