"""Controllers: reconcilers that read the store, take one idempotent step and write it down.

Invariants of :class:`ControllerRunner`: one thread per controller, alive from :meth:`~ControllerRunner.start` to
:meth:`~ControllerRunner.stop`, so a step may start processes that die with their parent thread; two steps of one
controller never overlap; an exception never ends a thread, it is logged, kept for the status and answered by waiting
longer before the next step.

>>> class Beat:
...     name, period_s = "beat", 0.01
...     def step(self) -> None: ...
>>> runner = ControllerRunner([Beat()])
>>> runner.start()
>>> runner.stop(deadline_s=5)
[]
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from skerry_server.clock import now_ms

log = logging.getLogger(__name__)

#: Longest wait after repeated failures (seconds).
LONGEST_BACKOFF_S = 30.0
#: A step that has been running for longer than this is called stuck (milliseconds).
STUCK_AFTER_MS = 120_000


class Controller(Protocol):
    """Something that moves the store from what is observed towards what is desired.

    Attributes:
        name: Unique in the process; names the thread and appears in the status.
        period_s: Wait between the end of one step and the start of the next, seconds, above 0.
    """

    name: str
    period_s: float

    def step(self) -> None:
        """Take one step. It must be idempotent, for the process may be killed at any point of it."""
        ...


@dataclass(frozen=True)
class ControllerStatus:
    """How a controller has been doing.

    Attributes:
        name: Its name.
        steps: Steps that ended well.
        failures: Steps that raised.
        consecutive_failures: Steps that raised since the last good one.
        running_since_ms: Start of the step that is running; 0 between steps.
        last_step_ms: End of the last step, good or bad; 0 before the first.
        last_duration_ms: How long it took.
        last_error: Type and message of the last exception; empty after a good step.
    """

    name: str
    steps: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    running_since_ms: int = 0
    last_step_ms: int = 0
    last_duration_ms: int = 0
    last_error: str = ""

    def stuck(self, at_ms: int) -> bool:
        """Whether one step has been running for too long."""
        return self.running_since_ms > 0 and at_ms - self.running_since_ms > STUCK_AFTER_MS

    def healthy(self, at_ms: int) -> bool:
        """Whether the last step was good and none is stuck."""
        return not self.last_error and not self.stuck(at_ms)

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def backoff_s(period_s: float, consecutive_failures: int) -> float:
    """Wait before the next step: the period, doubled with every failure in a row, at most 30 s (or the period)."""
    doubled = period_s * 2.0 ** min(consecutive_failures, 32)
    return max(period_s, min(LONGEST_BACKOFF_S, doubled))


class ControllerRunner:
    """Runs controllers, each in its own thread, and knows how they are doing."""

    def __init__(
        self, controllers: Sequence[Controller], *, at_end: Mapping[str, Callable[[], None]] | None = None
    ) -> None:
        """Prepare ``controllers``.

        Args:
            controllers: What to run.
            at_end: By name of a controller, what its thread does after the last step, while whatever the steps have
                started still has its parent thread.

        Raises:
            ValueError: Two have the same name, or a period is not above 0.
        """
        names = [controller.name for controller in controllers]
        if len(set(names)) != len(names):
            raise ValueError(f"controller names must be distinct, got {names}")
        for controller in controllers:
            if controller.period_s <= 0:
                raise ValueError(f"controller {controller.name}: period_s must be above 0, got {controller.period_s}")
        self._at_end = dict(at_end or {})
        if unknown := set(self._at_end) - set(names):
            raise ValueError(f"at_end names controllers that are not there: {sorted(unknown)}")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._statuses = {name: ControllerStatus(name) for name in names}
        self._threads = [
            threading.Thread(target=self._run, args=(controller,), name=f"controller-{controller.name}", daemon=True)
            for controller in controllers
        ]

    def start(self) -> None:
        """Start every thread."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, deadline_s: float) -> list[str]:
        """Ask every thread to end after its step and wait.

        Args:
            deadline_s: How long to wait for all together, seconds.

        Returns:
            Names of the threads that are still in a step; they are daemons and end with the process.
        """
        self._stop.set()
        until = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return [thread.name.removeprefix("controller-") for thread in self._threads if thread.is_alive()]

    def statuses(self) -> list[ControllerStatus]:
        """How each controller is doing, in the order they were given."""
        with self._lock:
            return list(self._statuses.values())

    def _run(self, controller: Controller) -> None:
        while not self._stop.is_set():
            started = now_ms()
            self._update(controller.name, running_since_ms=started)
            try:
                controller.step()
            except Exception as error:  # a controller must outlive whatever its step meets
                failures = self._failed(controller.name, started, f"{type(error).__name__}: {error}"[:500])
                log.exception("controller %s: step failed (%d in a row)", controller.name, failures)
            else:
                failures = 0
                self._succeeded(controller.name, started)
            self._stop.wait(backoff_s(controller.period_s, failures))
        if controller.name in self._at_end:
            try:
                self._at_end[controller.name]()
            except Exception:  # the others must still be stopped
                log.exception("controller %s: its end failed", controller.name)

    def _succeeded(self, name: str, started_ms: int) -> None:
        with self._lock:
            status = self._statuses[name]
        self._update(name, started_ms=started_ms, steps=status.steps + 1, consecutive_failures=0, last_error="")

    def _failed(self, name: str, started_ms: int, error: str) -> int:
        with self._lock:
            status = self._statuses[name]
        failures = status.consecutive_failures + 1
        self._update(
            name,
            started_ms=started_ms,
            failures=status.failures + 1,
            consecutive_failures=failures,
            last_error=error,
        )
        return failures

    def _update(self, name: str, *, started_ms: int | None = None, **changes: Any) -> None:
        if started_ms is not None:
            ended = now_ms()
            changes |= {"running_since_ms": 0, "last_step_ms": ended, "last_duration_ms": ended - started_ms}
        with self._lock:
            self._statuses[name] = replace(self._statuses[name], **changes)
