"""The supervisor: starts children, keeps them running, stops them in order. One thread, no locks.

Invariants: a child that ends is started again after a growing wait (see :mod:`skerry_server.supervision.backoff`),
for ever, once the tree has been ready; before that, a child that keeps ending, or is not ready in time, ends the start
with an error that shows the end of its log. ``run/state.json`` is written after every change and before the tree is
called ready; while the disk is full the tree runs on, and the file is written when there is room.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from skerry_server.config import ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.supervision.backoff import Backoff
from skerry_server.supervision.child import Child, ChildSpec, last_lines, rotate
from skerry_server.supervision.state_file import (
    ProcessState,
    TreeState,
    process_created_s,
    remove_state,
    write_state,
)

log = logging.getLogger(__name__)

#: How often the children are looked at (seconds).
TICK_S = 0.1
#: How often a child that is not ready is asked (seconds).
READY_PERIOD_S = 0.25
#: How long the first start may take (seconds).
START_DEADLINE_S = 120.0
#: Ends of one child before it was ever ready, after which the first start is given up.
START_ATTEMPTS = 4
#: How often the size of the logs is looked at (seconds).
ROTATE_PERIOD_S = 60.0


@dataclass
class _Slot:
    """A place in the tree: its process now, and what is known of the earlier ones."""

    spec: ChildSpec
    child: Child | None = None
    created_s: float = 0.0
    ready: bool = False
    ever_ready: bool = False
    restarts: int = 0
    last_exit: str = ""
    start_at: float = 0.0
    ask_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    def state(self) -> ProcessState:
        pid = 0 if self.child is None else self.child.pid
        return ProcessState(self.spec.name, pid, self.created_s, self.restarts, self.ready, self.last_exit)


class Supervisor:
    """Runs a list of children until it is told to stop."""

    def __init__(self, layout: ServerLayout, specs: Sequence[ChildSpec], tree: TreeState) -> None:
        """Prepare.

        Args:
            layout: Where logs and the state file go.
            specs: Children in the order of their start; they are stopped in the reverse order.
            tree: Addresses for the state file; identifiers and processes are filled in here.
        """
        self._layout = layout
        self._slots = [_Slot(spec) for spec in specs]
        self._tree = replace(tree, pid=os.getpid(), created_s=process_created_s(os.getpid()) or 0.0, ready=False)
        self._stop = threading.Event()
        self._rotate_at = 0.0
        self._unwritten = False

    @property
    def state(self) -> TreeState:
        """The tree as it is now."""
        return replace(self._tree, processes=[slot.state() for slot in self._slots])

    def request_stop(self) -> None:
        """Make :meth:`run` return; may be called from a signal handler."""
        self._stop.set()

    def run(self, on_ready: Callable[[TreeState], None], *, start_deadline_s: float = START_DEADLINE_S) -> None:
        """Run until :meth:`request_stop`; whatever happens, every child has ended when it returns or raises.

        Must be called from a thread that lives as long as the children shall (the main thread): they get SIGKILL when
        it ends.

        Args:
            on_ready: Called once, when every child has been ready.
            start_deadline_s: How long that may take.

        Raises:
            PlatformError: The tree did not become ready.
        """
        give_up = time.monotonic() + start_deadline_s
        try:
            while not self._stop.is_set():
                changed = self._unwritten
                for slot in self._slots:
                    changed |= self._look_after(slot)
                if not self._tree.ready:
                    if all(slot.ever_ready for slot in self._slots):
                        self._tree = replace(self._tree, ready=True)
                        self._write_state()
                        on_ready(self.state)
                        changed = False
                    elif time.monotonic() > give_up:
                        waiting = next(slot for slot in self._slots if not slot.ever_ready)
                        raise self._start_failed(waiting, f"is not ready after {start_deadline_s:.0f} s")
                if changed:
                    self._write_state()
                self._rotate_logs()
                self._stop.wait(TICK_S)
        finally:
            self._stop_all()

    def _write_state(self) -> None:
        try:
            write_state(self._layout, self.state)
        except OSError as error:
            if not self._unwritten:
                log.error("run/state.json cannot be written, it is tried again: %s", error)
            self._unwritten = True
        else:
            self._unwritten = False

    def _look_after(self, slot: _Slot) -> bool:
        """Start, reap or ask one child; returns whether its state changed."""
        moment = time.monotonic()
        if slot.child is None:
            if moment < slot.start_at:
                return False
            slot.child = Child(slot.spec, self._layout.logs / f"{slot.spec.name}.log")
            slot.created_s = process_created_s(slot.child.pid) or time.time()
            slot.ask_at = 0.0
            return True
        status = slot.child.exit_status()
        if status is not None:
            self._ended(slot, slot.child, status)
            return True
        if not slot.ready and moment >= slot.ask_at:
            slot.ask_at = moment + READY_PERIOD_S
            if slot.child.is_ready():
                slot.ready = slot.ever_ready = True
                return True
        return False

    def _ended(self, slot: _Slot, child: Child, status: str) -> None:
        child.kill_group()  # what it left behind may hold its ports
        wait = slot.backoff.after_exit(lived_s=time.monotonic() - child.started)
        log.warning("%s ended with %s; it is started again in %.1f s", slot.spec.name, status, wait)
        slot.child, slot.ready, slot.created_s, slot.last_exit = None, False, 0.0, status
        slot.restarts += 1
        slot.start_at = time.monotonic() + wait
        if not self._tree.ready and not slot.ever_ready and slot.restarts >= START_ATTEMPTS:
            raise self._start_failed(slot, f"ended {slot.restarts} times ({status})")

    def _start_failed(self, slot: _Slot, what: str) -> PlatformError:
        path = self._layout.logs / f"{slot.spec.name}.log"
        tail = last_lines(path)
        shown = "".join(f"\n  | {line}" for line in tail.splitlines())
        return PlatformError(f"{slot.spec.name} {what}", remedy=f"read {path}{shown}")

    def _rotate_logs(self) -> None:
        if time.monotonic() >= self._rotate_at:
            self._rotate_at = time.monotonic() + ROTATE_PERIOD_S
            for slot in self._slots:
                rotate(self._layout.logs / f"{slot.spec.name}.log")

    def _stop_all(self) -> None:
        for slot in reversed(self._slots):
            if slot.child is None:
                continue
            slot.child.terminate()
            if not slot.child.wait(slot.spec.stop_s):
                log.warning("%s did not end within %.0f s of SIGTERM and is killed", slot.spec.name, slot.spec.stop_s)
            slot.child.kill_group()
        remove_state(self._layout)
