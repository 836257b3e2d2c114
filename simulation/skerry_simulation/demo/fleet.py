"""The processes of the demo: one control plane, N agents, and an application beside each agent."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from skerry_models.task import Dataset, Task
from skerry_simulation.client import ControlPlaneClient
from skerry_simulation.demo.device import DeviceApplication
from skerry_simulation.demo.settings import DemoSettings
from skerry_simulation.errors import StepError
from skerry_simulation.processes import Daemon, DaemonGroup

CONTROL_PLANE = "control plane"
_QUIET = {
    "DO_NOT_TRACK": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class DemoDevice:
    """A device with data of its own.

    Attributes:
        id: Name of the device.
        application: Asks its agent.
        seen: Rows that its application sees and whose truth becomes known.
        held_out: Rows that are only ever used to judge.
        drifts: Whether its data will drift.
        drift_seed: How.
    """

    id: str
    application: DeviceApplication
    seen: Dataset
    held_out: Dataset
    drifts: bool
    drift_seed: int


def command(program: str, *arguments: str | Path) -> list[str]:
    """A console script of the environment that this process runs in."""
    return [str(Path(sys.executable).with_name(program)), *map(str, arguments)]


def start_control_plane(group: DaemonGroup, settings: DemoSettings) -> ControlPlaneClient:
    """``skerry up``; returns a client with the administrator's token once the API answers."""
    folder = settings.server_folder
    log = settings.folder / "logs" / "control-plane.log"
    group.start(Daemon(CONTROL_PLANE, command("skerry", "up", "--data-dir", folder), log=log, environment=_QUIET))
    state = wait_for_state(group, folder, log)
    client = ControlPlaneClient(str(state["url"]), (folder / "admin-token").read_text().strip())
    client.get("/v1/summary")
    return client


def wait_for_state(group: DaemonGroup, folder: Path, log: Path, *, seconds: float = 120.0) -> dict[str, Any]:
    """The description of the running process tree, once every part is up."""
    deadline = time.monotonic() + seconds
    while True:
        group.check()
        try:
            state: dict[str, Any] = json.loads((folder / "run" / "state.json").read_text())
        except (OSError, ValueError):
            state = {}
        if state.get("url") and (folder / "admin-token").exists():
            return state
        if time.monotonic() > deadline:
            raise StepError("starting the control plane", f"not within {seconds:g} s; its log ends:\n{_tail(log)}")
        time.sleep(0.2)


def enroll_device(client: ControlPlaneClient, settings: DemoSettings, device_id: str, client_name: str) -> None:
    """Enrol one device with a single-use token, as a device engineer would, and set the demo's reporting pace."""
    folder = settings.agent_folder(device_id)
    made = client.post("/v1/enrollment-tokens", {"ttl_s": 600})
    done = subprocess.run(
        command(
            "skerry-agent", "enroll", "--server", str(made["server"]), "--token", str(made["token"]),
            "--device-id", device_id, "--label", f"data={client_name}", "--data-dir", folder, "--force",
        ),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise StepError(f"enrolling {device_id}", done.stderr.strip() or done.stdout.strip())
    path = folder / "agent.json"
    document = json.loads(path.read_text())
    document |= {
        "window_requests": settings.window_rows,
        "window_seconds": 3600.0,
        "health_seconds": 2.0,
        "isolation": "off",  # several devices share this machine: none may have a core of its own
        "reconnect_seconds": 2.0,  # a handful of devices on one machine need no spread over minutes
    }
    path.write_text(json.dumps(document, indent=2))


def make_device(task: Task, settings: DemoSettings, index: int, device_id: str, client_name: str) -> DemoDevice:
    """Give a device the data of one of the task's clients."""
    data = task.source(f"client/{client_name}")
    seen, held_out = data.split(0.75, seed=settings.seed)
    return DemoDevice(
        id=device_id,
        application=DeviceApplication(device_id, task.name, settings.agent_folder(device_id)),
        seen=seen,
        held_out=held_out,
        drifts=index < settings.drifted_devices,
        drift_seed=settings.seed + index,
    )


def start_agent(group: DaemonGroup, settings: DemoSettings, device_id: str) -> None:
    """``skerry-agent run``."""
    folder = settings.agent_folder(device_id)
    log = settings.folder / "logs" / f"{device_id}.log"
    group.start(Daemon(device_id, command("skerry-agent", "run", "--data-dir", folder), log=log, environment=_QUIET))


def rows_of_window(device: DemoDevice, count: int, rng: np.random.Generator) -> Dataset:
    """``count`` rows of what the application sees: whole shuffled passes, so that windows are alike."""
    passes = [rng.permutation(len(device.seen)) for _ in range(-(-count // len(device.seen)))]
    return device.seen.take(np.concatenate(passes)[:count])


def describe_processes(group: DaemonGroup) -> list[dict[str, Any]]:
    """Every process of the run: name, pid, parent's name, memory."""
    rows: list[dict[str, Any]] = []
    for daemon in group.daemons.values():
        if daemon.process is None or not daemon.alive:
            continue
        root = psutil.Process(daemon.process.pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                arguments = process.cmdline()
                rows.append(
                    {
                        "name": f"{daemon.name}: {_short(arguments)}",
                        "pid": process.pid,
                        "rss_mb": round(process.memory_info().rss / 1e6, 1),
                    }
                )
            except psutil.NoSuchProcess:
                continue
    return rows


def _short(arguments: list[str]) -> str:
    if len(arguments) > 2 and arguments[1] == "-m":
        return " ".join(arguments[2:4]) if arguments[2].endswith((".cli", ".main")) else arguments[2]
    return " ".join(Path(argument).name for argument in arguments[:2])


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:])
    except OSError:
        return ""
