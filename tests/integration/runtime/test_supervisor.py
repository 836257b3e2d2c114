"""Supervisor with small children of the test's own, in this process."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from integration.runtime.broker_process import Wait
from skerry_server.config import ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.first_start import make_folders
from skerry_server.supervision.child import ChildSpec, Ready, http_ready
from skerry_server.supervision.state_file import TreeState, read_state, state_path
from skerry_server.supervision.supervisor import Supervisor


class Running:
    """A supervisor in a thread; its children die with the thread."""

    def __init__(self, layout: ServerLayout, specs: list[ChildSpec], *, start_deadline_s: float = 30.0) -> None:
        self.supervisor = Supervisor(layout, specs, TreeState(0, 0.0, "u", "g", "b", "s"))
        self.ready: queue.Queue[TreeState] = queue.Queue()
        self.error: PlatformError | None = None
        self._deadline_s = start_deadline_s
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run(self.ready.put, start_deadline_s=self._deadline_s)
        except PlatformError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self.supervisor.request_stop()
        self.join()


@pytest.fixture
def layout(tmp_path: Path) -> ServerLayout:
    made = ServerLayout(tmp_path)
    make_folders(made)
    return made


@pytest.fixture
def start(layout: ServerLayout) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(*specs: ChildSpec, start_deadline_s: float = 30.0) -> Running:
        running.append(Running(layout, list(specs), start_deadline_s=start_deadline_s))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


def _spec(name: str, program: str, ready: Ready = lambda _pid: True, *, stop_s: float = 5.0) -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-c", program], ready, dict(os.environ), stop_s=stop_s)


SLEEP = "import time; time.sleep(600)"


def _says_set(log: Path, _pid: int) -> bool:
    return "set" in log.read_text()


def test_children_are_stopped_in_the_reverse_order_of_their_start(
    layout: ServerLayout, start: Callable[..., Running]
) -> None:
    record = layout.root / "ends"
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(record)!r}, 'a').write(sys.argv[1] + ' ')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('set', flush=True)\n"
        "time.sleep(600)\n"
    )
    specs = []
    for name in ("first", "second", "third"):
        log = layout.logs / f"{name}.log"
        command = [sys.executable, "-c", program, name]
        specs.append(ChildSpec(name, command, partial(_says_set, log), dict(os.environ)))
    running = start(*specs)
    assert running.ready.get(timeout=30).ready
    running.stop()
    assert record.read_text().split() == ["third", "second", "first"]
    assert read_state(layout) is None


def test_a_child_that_never_becomes_ready_ends_the_start_in_time(start: Callable[..., Running]) -> None:
    running = start(_spec("good", SLEEP), _spec("deaf", SLEEP, lambda _pid: False), start_deadline_s=1.0)
    running.join()
    assert running.error is not None
    assert "deaf is not ready after 1 s" in str(running.error)
    assert running.ready.empty()


def test_a_program_that_is_not_there_is_named(start: Callable[..., Running]) -> None:
    running = start(ChildSpec("absent", ["/nowhere/program"], lambda _pid: True, dict(os.environ)))
    running.join()
    assert "absent: /nowhere/program cannot be run" in str(running.error)


def test_it_runs_on_while_the_state_file_cannot_be_written(
    layout: ServerLayout, start: Callable[..., Running], wait_until: Wait
) -> None:
    state_path(layout).mkdir()  # cannot be replaced by a file, as on a full disk
    running = start(_spec("one", SLEEP))
    pid = running.ready.get(timeout=30).processes[0].pid
    state_path(layout).rmdir()

    def written() -> bool:
        state = read_state(layout)
        return state is not None and state.ready and state.processes[0].pid == pid

    wait_until(written, what="the file is written when it can be")


def test_after_the_start_a_child_is_started_again_for_ever(
    layout: ServerLayout, start: Callable[..., Running], wait_until: Wait
) -> None:
    running = start(_spec("one", SLEEP))
    running.ready.get(timeout=30)
    for restarts in range(1, 6):  # more often than a first start would bear
        (before,) = running.supervisor.state.processes
        os.kill(before.pid, signal.SIGKILL)
        wait_until(
            lambda restarts=restarts: _ready_after(running, restarts), what=f"it is back for the {restarts}. time"
        )
    assert running.ready.empty()


def _ready_after(running: Running, restarts: int) -> bool:
    (process,) = running.supervisor.state.processes
    return process.restarts == restarts and process.ready and process.alive()


def test_http_readiness_takes_http_only() -> None:
    with pytest.raises(ValueError, match="http://"):
        http_ready("file:///etc/passwd")
    assert not http_ready("http://127.0.0.1:1/health")(1)
