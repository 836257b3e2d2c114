"""Stop what a demo left running: every process whose command line names the run's folder."""

from __future__ import annotations

from pathlib import Path

import psutil

from skerry_simulation.errors import ScenarioError


def stop_demo(folder: Path) -> int:
    """Send SIGTERM to the supervisors of the run, then SIGKILL to what is left after 30 s; returns how many there were.

    Raises:
        ScenarioError: The folder is not one of a demo.
    """
    if not (folder / ".skerry-demo").exists():
        raise ScenarioError("--folder", expected="the folder of a demo", got=folder)
    supervisors = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        named = any(str(folder / part) in argument for argument in arguments for part in ("server", "agents"))
        if named and {"up", "run"} & set(arguments):
            supervisors.append(process)
    for process in supervisors:
        process.terminate()
    _, left = psutil.wait_procs(supervisors, timeout=30)
    for process in left:
        process.kill()
    return len(supervisors)
