"""`skerry-agent run` as real processes: each child is killed and comes back; it stops in order; one per directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from integration.control.device import enrolled
from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.supervisor import ChildSpec, supervise

Wait = Callable[..., None]
COMMAND = [sys.executable, "-m", "skerry_agent.cli"]


def processes(layout: AgentLayout) -> dict[str, int]:
    try:
        document = json.loads((layout.run / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return {entry["name"]: entry["pid"] for entry in document["processes"]}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="sk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_every_child_that_is_killed_comes_back(short_dir: Path, wait_until: Wait) -> None:
    layout = enrolled(short_dir / "d", None)
    with (short_dir / "out").open("wb") as out:
        agent = subprocess.Popen(
            [*COMMAND, "run", "--data-dir", str(layout.root)], stdout=out, stderr=out, env=os.environ
        )
    try:
        wait_until(lambda: len(processes(layout)) == 3, what="three processes")
        wait_until(layout.serving_file.exists, what="open doors", seconds=90)
        for name in ("control", "serving", "training"):
            pid = processes(layout)[name]
            wait_until(
                lambda pid=pid, name=name: f"skerry_agent.{name}" in command_line(pid), what=f"{name} is what it says"
            )
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid, name=name: processes(layout).get(name, pid) != pid, what=f"{name} has come back")
        pids = processes(layout)
        assert len(pids) == 3
        wait_until(lambda: layout.serving_file.exists(), what="open doors again", seconds=90)
        status = subprocess.run(
            [*COMMAND, "status", "--json", "--data-dir", str(layout.root)], capture_output=True, timeout=60, check=False
        )
        assert status.returncode == 0, status.stderr
        said = json.loads(status.stdout)
        assert said["running"] is True
        assert datetime.fromisoformat(said["certificate_until"]) > datetime.now(UTC)
        assert set(said["processes"]) == {"control", "serving", "training"}
        assert (said["device_id"], said["release_id"], said["update_state"]) == ("press-07", "", "idle")
        second = subprocess.run(
            [*COMMAND, "run", "--data-dir", str(layout.root)], capture_output=True, timeout=60, check=False
        )
        assert second.returncode == 3
        assert b"another agent runs on" in second.stderr
        assert b"Traceback" not in second.stderr
        agent.terminate()
        assert agent.wait(timeout=60) == 0
        assert not any(alive(pid) for pid in pids.values())
        stopped = [
            line.split()[-2] for line in (short_dir / "out").read_text().splitlines() if line.endswith("stopped")
        ]
        assert stopped == ["training", "control", "serving"]
        assert not (layout.run / "state.json").exists()
    finally:
        if agent.poll() is None:
            agent.kill()
            agent.wait(timeout=10)
    after = subprocess.run(
        [*COMMAND, "status", "--data-dir", str(layout.root)], capture_output=True, timeout=60, check=False
    )
    assert after.returncode == 3
    assert b"(not running)" in after.stdout


def sleepers(*names: str) -> Callable[[Path], list[ChildSpec]]:
    return lambda root: [ChildSpec(name, ("-c", "import time; time.sleep(600)"), stop_s=5.0) for name in names]


def test_children_die_with_a_supervisor_that_is_killed(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")
    script = (
        "import sys; from pathlib import Path; from skerry_agent.config import AgentLayout;"
        "from skerry_agent.supervisor import ChildSpec, supervise;"
        "supervise(AgentLayout(Path(sys.argv[1])), children=lambda root: "
        "[ChildSpec(name, ('-c', 'import time; time.sleep(600)'), stop_s=5.0) for name in ('one', 'two')])"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script, str(layout.root)])
    wait_until(lambda: len(processes(layout)) == 2, what="two children")
    pids = list(processes(layout).values())
    wait_until(lambda: all("time.sleep" in str(command_line(pid)) for pid in pids), what="the children run")
    supervisor.kill()
    supervisor.wait(timeout=10)
    wait_until(lambda: not any(alive(pid) for pid in pids), what="the children are gone")


def test_a_child_that_ignores_sigterm_is_killed_after_its_deadline(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    stop = threading.Event()
    thread = threading.Thread(
        target=supervise,
        args=(layout,),
        kwargs={"children": lambda root: [ChildSpec("stubborn", ("-c", stubborn), stop_s=0.3)], "stop": stop},
    )
    thread.start()
    wait_until(
        lambda: (layout.logs / "stubborn.log").exists() and "deaf" in (layout.logs / "stubborn.log").read_text(),
        what="the child is deaf",
    )
    pid = processes(layout)["stubborn"]
    stop.set()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert not alive(pid)


def test_one_agent_per_directory(short_dir: Path, wait_until: Wait) -> None:
    layout = AgentLayout(short_dir / "d")
    stop = threading.Event()
    thread = threading.Thread(target=supervise, args=(layout,), kwargs={"children": sleepers("one"), "stop": stop})
    thread.start()
    try:
        wait_until(lambda: processes(layout), what="running")
        before = processes(layout)
        with pytest.raises(DeviceError, match="another agent runs on"):
            supervise(layout, children=sleepers("two"), stop=threading.Event())
        assert processes(layout) == before
    finally:
        stop.set()
        thread.join(timeout=20)
