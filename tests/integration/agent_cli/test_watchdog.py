"""A process that hangs is killed and started again, as one that died is; systemd hears what it has to."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.agent_cli.test_agent_run import processes, short_dir
from integration.control.device import enrolled
from skerry_agent.config import AgentLayout
from skerry_agent.heartbeat import VARIABLE, Heartbeat, HeartbeatMonitor
from skerry_agent.service_manager import ServiceManager
from skerry_agent.supervisor import ChildSpec, agent_children, supervise
from skerry_agent.update.boots import Boots, read_boots
from skerry_agent.update.pointer import Pointer, read_pointer, write_pointer

__all__ = ["short_dir"]
Wait = Callable[..., None]
BEATS = """
import os, time
from skerry_agent.heartbeat import Heartbeat
heart = Heartbeat()
print("environment", sorted(name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))), flush=True)
while True:
    heart.beat()
    time.sleep(0.02)
"""
SILENT = "import time; time.sleep(600)"


def said(layout: AgentLayout, name: str) -> str:
    """What a child has printed; nothing before it was started."""
    log = layout.logs / f"{name}.log"
    return log.read_text() if log.exists() else ""


@contextmanager
def supervised(layout: AgentLayout, children: Callable[[Path], list[ChildSpec]]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=supervise, args=(layout,), kwargs={"children": children, "stop": stop})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=40)
    assert not thread.is_alive()


def test_a_process_that_is_stopped_is_replaced(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")

    def children(root: Path) -> list[ChildSpec]:
        return [
            ChildSpec(name, ("-c", BEATS), stop_s=5.0, silent_s=1.0, first_beat_s=60.0) for name in ("hung", "well")
        ] + [ChildSpec("unwatched", ("-c", SILENT), stop_s=5.0)]

    with supervised(layout, children):
        wait_until(lambda: "environment" in said(layout, "hung"), what="the first beat")
        before = processes(layout)
        os.kill(before["hung"], signal.SIGSTOP)
        wait_until(lambda: processes(layout).get("hung", before["hung"]) != before["hung"], what="another process")
        after = processes(layout)
        assert (after["well"], after["unwatched"]) == (before["well"], before["unwatched"])
        with pytest.raises(ProcessLookupError):
            os.kill(before["hung"], 0)


def test_a_process_that_never_begins_to_beat_is_replaced(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")
    spec = ChildSpec("mute", ("-c", SILENT), stop_s=5.0, silent_s=60.0, first_beat_s=0.3)
    with supervised(layout, lambda root: [spec]):
        wait_until(lambda: processes(layout), what="the process")
        first = processes(layout)["mute"]
        wait_until(lambda: processes(layout).get("mute", first) != first, what="another process")


def test_a_hung_serving_process_opens_its_doors_again(short_dir: Path, wait_until: Wait) -> None:
    layout = enrolled(short_dir / "d", None)

    def children(root: Path) -> list[ChildSpec]:
        serving = next(spec for spec in agent_children(root) if spec.name == "serving")
        assert serving.silent_s > 0
        return [dataclasses.replace(serving, silent_s=8.0)]

    def doors() -> int:
        try:
            return int(json.loads(layout.serving_file.read_bytes())["pid"])
        except (OSError, ValueError):
            return 0

    with supervised(layout, children):
        wait_until(doors, what="open doors", seconds=90)
        hung = doors()
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: doors() not in (0, hung), what="the doors of another process", seconds=90)


@pytest.mark.parametrize("name", ["control", "serving"])
def test_a_real_process_beats_as_long_as_it_moves(name: str, short_dir: Path, wait_until: Wait) -> None:
    layout = enrolled(short_dir / "d", None)
    monitor = HeartbeatMonitor()
    process = subprocess.Popen(
        [sys.executable, "-m", f"skerry_agent.{name}", str(layout.root)],
        env=os.environ | {VARIABLE: str(monitor.descriptor)},
        pass_fds=(monitor.descriptor,),
        stderr=subprocess.DEVNULL,
    )
    try:
        for beat in ("first", "second", "third"):
            wait_until(monitor.heard, what=f"the {beat} beat", seconds=60)
    finally:
        process.terminate()
        process.wait(timeout=30)
        monitor.close()


def test_both_watched_processes_are_given_a_heartbeat(tmp_path: Path) -> None:
    assert {spec.name for spec in agent_children(tmp_path) if spec.silent_s} == {"control", "serving"}


def test_systemd_hears_ready_alive_and_stopping(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")
    address = short_dir / "notify"
    script = (
        "import sys; from pathlib import Path; from skerry_agent.config import AgentLayout;"
        "from skerry_agent.supervisor import ChildSpec, supervise;"
        f"supervise(AgentLayout(Path(sys.argv[1])), children=lambda root: "
        f"[ChildSpec('one', ('-c', {BEATS!r}), stop_s=5.0, silent_s=60.0)])"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        environment = os.environ | {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "400000"}
        agent = subprocess.Popen([sys.executable, "-c", script, str(layout.root)], env=environment)
        try:
            heard = [manager.recv(100) for _ in range(4)]
            assert sorted(set(heard)) == [b"READY=1", b"WATCHDOG=1"]
            assert heard.count(b"READY=1") == 1
            wait_until(lambda: "environment" in said(layout, "one"), what="the child")
            agent.terminate()
            while heard[-1] != b"STOPPING=1":
                heard.append(manager.recv(100))
            assert agent.wait(timeout=30) == 0
        finally:
            agent.kill()
            agent.wait(timeout=10)
    assert "environment []" in (layout.logs / "one.log").read_text(), "children do not speak with systemd"


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({"WATCHDOG_USEC": "4000000"}, [0.0, 2.0, 4.0]),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, [0.0, 2.0, 4.0]),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, []),
        ({"WATCHDOG_USEC": "soon"}, []),
        ({}, []),
    ],
)
def test_the_watchdog_is_fed_at_half_of_its_time(
    short_dir: Path, environment: dict[str, str], sent: list[float]
) -> None:
    now, fed = 0.0, []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_dir / "notify"))
        manager.setblocking(False)
        service = ServiceManager(environment | {"NOTIFY_SOCKET": str(short_dir / "notify")}, monotonic=lambda: now)
        for now in (0.0, 1.0, 1.9, 2.0, 3.9, 4.0):
            service.alive()
            try:
                assert manager.recv(100) == b"WATCHDOG=1"
                fed.append(now)
            except BlockingIOError:
                continue
        service.close()
    assert fed == sent


@pytest.mark.parametrize("address", ["", "relative", "/nobody/there"])
def test_without_a_service_manager_nothing_happens(address: str) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    service.ready()
    service.alive()
    service.stopping()
    service.close()


def test_a_pipe_that_nobody_reads_is_no_trouble() -> None:
    monitor = HeartbeatMonitor()
    heart = Heartbeat({VARIABLE: str(monitor.descriptor)})
    assert monitor.heard() is False
    for _ in range(70_000):
        heart.beat()
    assert [monitor.heard(), monitor.heard()] == [True, False]
    monitor.close()
    for text in ("", "x", "-1", "999999"):
        Heartbeat({VARIABLE: text}).beat()


def test_starts_are_counted_and_a_stop_in_order_is_not(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")
    write_pointer(layout, Pointer("b", "digits-2", committed=False, previous_slot="a", previous_release="digits-1"))
    script = (
        "import sys; from pathlib import Path; from skerry_agent.config import AgentLayout;"
        "from skerry_agent.supervisor import ChildSpec, supervise;"
        f"supervise(AgentLayout(Path(sys.argv[1])), children=lambda root: [ChildSpec('one', ('-c', {SILENT!r}), 5.0)])"
    )
    ends: list[tuple[Callable[[subprocess.Popen[bytes]], None], int]] = [
        (subprocess.Popen.terminate, 0),
        (subprocess.Popen.kill, 1),
        (subprocess.Popen.terminate, 1),
        (subprocess.Popen.kill, 2),
    ]
    for end, starts in ends:
        agent = subprocess.Popen([sys.executable, "-c", script, str(layout.root)])
        pid = agent.pid
        wait_until(lambda pid=pid: state_pid(layout) == pid, what="the agent")
        end(agent)
        agent.wait(timeout=30)
        assert read_boots(layout) == Boots("digits-2", starts)
    with supervised(layout, lambda root: [ChildSpec("one", ("-c", SILENT), 5.0)]):
        wait_until(lambda: state_pid(layout) == os.getpid(), what="the agent")
        assert read_pointer(layout) == Pointer("a", "digits-1", committed=True), "before any process started"


def state_pid(layout: AgentLayout) -> int:
    try:
        return int(json.loads((layout.run / "state.json").read_bytes())["pid"])
    except (OSError, ValueError):
        return 0
