"""The demo while processes are being killed, when it is interrupted, and when it is called wrongly.

The whole loop under kills takes minutes (`make soak`). Its parts are killed in every run: jobs, campaigns, SuperLink
and devices (integration/federation), controllers before each write (rollouts, incidents, monitoring), the agent's
processes (agent_cli), the control plane's (runtime).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from integration.demo.demo_run import SIM, run_demo

pytestmark = [pytest.mark.demo, pytest.mark.timeout(1500)]


@pytest.mark.soak
def test_the_digits_loop_finishes_while_processes_are_killed(tmp_path: Path) -> None:
    finished = run_demo(tmp_path, "--devices", "3", "--chaos", "11", "--rounds", "2")
    # Train, rollout, federate and recover last longer than the latest kill; shorter phases may end before theirs.
    assert finished.output.count("chaos killed") >= 4
    result = finished.result
    assert [r["state"] for r in result["rollouts"]] == ["finished"] * 3
    assert result["drift"]["incidents_after"] == 1
    assert result["inference"]["offline_errors"] == 0
    left = [p for p in psutil.process_iter(["cmdline"]) if str(finished.folder) in " ".join(p.info["cmdline"] or [])]
    assert not psutil.wait_procs(left, timeout=20)[1]


def test_an_interrupted_demo_stops_everything(tmp_path: Path) -> None:
    command = [*SIM, "demo", "--folder", str(tmp_path / "run"), "--devices", "2"]

    def heed_interrupts() -> None:
        """Whoever starts the tests in the background of a shell has them ignore SIGINT, and their children too."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "server" / "run" / "state.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert not psutil.wait_procs([p for p in mine if p.pid != os.getpid()], timeout=20)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--task", "poetry"], 1, "digits"),
        (["--devices", "1"], 2, "2 to 12"),
        (["--devices", "many"], 2, "many"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    command = [*SIM, "demo", "--folder", str(tmp_path / "run"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "server").exists()


def test_a_folder_that_is_not_a_demo_s_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    done = subprocess.run(
        [*SIM, "demo", "--folder", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert precious.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [precious]


def test_missing_data_are_told_before_anything_starts(tmp_path: Path) -> None:
    environment = {**os.environ, "SKERRY_DATA_DIR": str(tmp_path / "nothing"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*SIM, "demo", "--folder", str(tmp_path / "run"), "--task", "har"],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SKERRY_DATA_DIR" in done.stderr
    assert not (tmp_path / "run").exists()
