"""Daemons of a run are kept alive, held, released, given up and stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_simulation.errors import StepError
from skerry_simulation.processes import RESTART_LIMIT, Daemon, DaemonGroup

SLEEPER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]


def daemon(tmp_path: Path, command: list[str], name: str = "one") -> Daemon:
    return Daemon(name, command, log=tmp_path / f"{name}.log", environment={"SKERRY_TEST": "1"})


def test_a_killed_daemon_comes_back_and_all_are_stopped(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with DaemonGroup() as group:
        one = daemon(tmp_path, SLEEPER)
        group.start(one)
        assert one.process is not None
        first = one.process.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: one.alive and one.process and one.process.pid != first, what="a second start")
        assert one.starts == 2
        last = one.process.pid
    assert not one.alive
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_held_daemon_stays_dead_until_it_is_released(tmp_path: Path) -> None:
    with DaemonGroup() as group:
        one = daemon(tmp_path, SLEEPER)
        group.start(one)
        group.hold("one")
        assert not one.alive
        group.release("one")
        assert one.alive


def test_one_that_cannot_live_is_given_up_with_its_last_words(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    with DaemonGroup() as group:
        one = daemon(tmp_path, [sys.executable, "-c", "raise SystemExit('no battery')"])
        group.start(one)
        wait_until(lambda: one.given_up, what="giving up", seconds=60)
        with pytest.raises(StepError, match="no battery"):
            group.check()
        assert one.starts == RESTART_LIMIT


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    deaf = [
        sys.executable, "-c",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()",
    ]  # fmt: skip
    group = DaemonGroup()
    with group:
        one = daemon(tmp_path, deaf)
        group.start(one)
        wait_until(lambda: "up" in one.tail(), what="the deaf one")
        group.stop_all(deadline_s=0.3)
        assert one.process is not None
        assert one.process.returncode == -signal.SIGKILL
