"""ControllerRunner: what a failing, slow or hanging controller does to itself and to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from skerry_server.controllers import (
    STUCK_AFTER_MS,
    ControllerRunner,
    ControllerStatus,
    backoff_s,
)

Wait = Callable[..., None]


class Scripted:
    """A controller whose steps follow a script, then succeed."""

    def __init__(self, name: str, script: list[Exception | threading.Event | None], period_s: float = 0.001) -> None:
        self.name = name
        self.period_s = period_s
        self._script = script
        self.threads: set[str] = set()
        self.steps = 0

    def step(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.steps += 1
        match self._script.pop(0) if self._script else None:
            case Exception() as error:
                raise error
            case threading.Event() as gate:
                gate.wait(30)


@pytest.mark.parametrize(
    ("period_s", "failures", "expected"),
    [(0.5, 0, 0.5), (0.5, 1, 1.0), (0.5, 3, 4.0), (0.5, 6, 30.0), (0.5, 10_000, 30.0), (60.0, 5, 60.0)],
)
def test_the_wait_doubles_up_to_thirty_seconds_or_the_period(period_s: float, failures: int, expected: float) -> None:
    assert backoff_s(period_s, failures) == expected


def test_a_failing_controller_recovers_and_does_not_hold_up_another(wait_until: Wait) -> None:
    failing = Scripted("failing", [ValueError("first"), RuntimeError("second")])
    steady = Scripted("steady", [])
    runner = ControllerRunner([failing, steady])
    runner.start()
    wait_until(lambda: runner.statuses()[0].steps >= 2 and runner.statuses()[1].steps >= 2, what="both have stepped")
    assert runner.stop(deadline_s=10) == []
    status = runner.statuses()[0]
    assert (status.failures, status.consecutive_failures, status.last_error) == (2, 0, "")
    assert status.last_step_ms > 0
    assert runner.statuses()[1].failures == 0
    # One thread from beginning to end: processes that die with their parent thread may be started in a step.
    assert failing.threads == {"controller-failing"}


def test_the_last_error_is_kept_until_a_good_step(wait_until: Wait) -> None:
    gate = threading.Event()
    controller = Scripted("one", [KeyError("missing"), gate])
    runner = ControllerRunner([controller])
    runner.start()
    wait_until(lambda: controller.steps == 2, what="the second step runs")
    status = runner.statuses()[0]
    assert (status.last_error, status.consecutive_failures) == ("KeyError: 'missing'", 1)
    assert not status.healthy(status.last_step_ms)
    gate.set()
    wait_until(lambda: runner.statuses()[0].last_error == "", what="the good step clears it")
    assert runner.stop(deadline_s=10) == []


def test_stop_names_the_controllers_that_are_still_in_a_step(wait_until: Wait) -> None:
    gate = threading.Event()
    hanging, steady = Scripted("hanging", [gate]), Scripted("steady", [])
    runner = ControllerRunner([hanging, steady])
    runner.start()
    wait_until(lambda: hanging.steps == 1, what="it hangs")
    assert runner.stop(deadline_s=0.05) == ["hanging"]
    gate.set()
    assert runner.stop(deadline_s=10) == []


def test_the_end_runs_in_the_thread_of_the_steps_and_a_failing_one_holds_up_nobody(wait_until: Wait) -> None:
    first, second = Scripted("first", []), Scripted("second", [])
    ends: list[str] = []

    def end() -> None:
        ends.append(threading.current_thread().name)
        raise RuntimeError("broken on purpose")

    runner = ControllerRunner([first, second], at_end={"first": end})
    runner.start()
    wait_until(lambda: first.steps and second.steps, what="both have stepped")
    assert runner.stop(deadline_s=10) == []
    assert ends == ["controller-first"]
    with pytest.raises(ValueError, match="third"):
        ControllerRunner([first], at_end={"third": end})


def test_a_step_that_takes_too_long_is_called_stuck() -> None:
    status = ControllerStatus("one", running_since_ms=1_000)
    assert not status.stuck(1_000 + STUCK_AFTER_MS)
    assert status.stuck(1_001 + STUCK_AFTER_MS)
    assert not status.healthy(1_001 + STUCK_AFTER_MS)
    assert not ControllerStatus("one").stuck(10**15)


@pytest.mark.parametrize(
    ("controllers", "message"),
    [
        ([Scripted("same", []), Scripted("same", [])], "distinct"),
        ([Scripted("one", [], period_s=0.0)], "period_s must be above 0"),
    ],
)
def test_defects_are_refused_at_once(controllers: list[Scripted], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ControllerRunner(controllers)
