"""``skerry up`` as a process: start, stop, kill whatever there is to kill, start again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner

from integration.runtime.broker_process import Wait
from skerry_server.cli.status import BROKEN, NOT_RUNNING, RUNNING, inspect
from skerry_server.cli.up import up
from skerry_server.config import ServerLayout, load_config
from skerry_server.store.database import Database
from skerry_server.store.tables import ApiToken, Cohort
from skerry_server.supervision.state_file import TreeState, read_state

PROGRAM = Path(__file__).with_name("tree_for_tests.py")
#: Ends only by SIGKILL, and leaves a grandchild in its process group.
STUBBORN = (
    "import pathlib, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "(folder / 'grandchild').write_text(str(child.pid))\n"
    "(folder / 'third-ready').touch()\n"
    "time.sleep(600)\n"
)


class Tree:
    """A supervisor in a process of its own."""

    def __init__(self, data_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.layout = ServerLayout(data_dir)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(data_dir), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ready(self) -> dict[str, Any]:
        """The JSON line; fails with what was printed if there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"it ended: {self.process.communicate(timeout=30)}")
        document: dict[str, Any] = json.loads(line)
        return document

    def state(self) -> TreeState:
        state = read_state(self.layout)
        assert state is not None
        return state

    def pids(self) -> dict[str, int]:
        return {process.name: process.pid for process in self.state().processes}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def fail(self) -> tuple[int, str]:
        """Exit status and standard error of a start that must not succeed."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@pytest.fixture
def trees() -> Iterator[list[Tree]]:
    started: list[Tree] = []
    yield started
    for tree in started:
        if tree.process.poll() is None:
            tree.process.kill()
        tree.process.communicate(timeout=30)


def _start(trees: list[Tree], data_dir: Path, *arguments: str, **settings: Any) -> Tree:
    tree = Tree(data_dir, *arguments, **settings)
    trees.append(tree)
    return tree


def _gone(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_the_life_of_a_tree(tmp_path: Path, trees: list[Tree], wait_until: Wait) -> None:
    """First start, every child killed, a second start refused, stop, start again with the same ports."""
    data_dir = tmp_path / "data"
    tree = _start(trees, data_dir)
    document = tree.ready()
    layout = tree.layout
    assert document["first_start"] is True
    assert document["ready"] is True
    token_file = Path(document["admin_token_file"])
    assert token_file.stat().st_mode & 0o777 == 0o600
    token = token_file.read_text().strip()
    database = Database(layout.database_url(load_config(layout)))
    with database.reading() as session:
        (row,) = session.query(ApiToken).all()
        assert (row.role, token in row.token_sha256, len(row.token_sha256)) == ("admin", False, 64)
        assert [cohort.id for cohort in session.query(Cohort)] == ["all"]
    database.close()
    assert inspect(layout).exit_code == RUNNING, inspect(layout).problems

    for name in ("mosquitto", "superlink", "api", "runtime"):
        before = tree.pids()[name]
        os.kill(before, signal.SIGKILL)
        wait_until(partial(_came_back, tree, name, before), what=f"{name} is back", seconds=60)
        (process,) = [process for process in tree.state().processes if process.name == name]
        assert (process.restarts, process.last_exit) == (1, "signal SIGKILL")
    wait_until(lambda: inspect(layout).exit_code == RUNNING, what="status is content again")

    second = _start(trees, data_dir)
    code, errors = second.fail()
    assert code == 3
    assert f"is in use by a control plane that is running (process {tree.process.pid})" in errors
    assert "--data-dir" in errors

    pids = tree.pids()
    assert tree.stop() == 0
    assert all(map(_gone, pids.values()))
    assert read_state(layout) is None
    assert inspect(layout).exit_code == NOT_RUNNING

    again = _start(trees, data_dir)
    second_document = again.ready()
    for name in ("url", "grpc", "broker", "superlink"):
        assert second_document[name] == document[name]
    assert second_document["first_start"] is False
    assert token_file.read_text().strip() == token

    # SIGKILL to the supervisor: nothing survives it.
    pids = again.pids()
    again.process.kill()
    again.process.wait(30)
    wait_until(lambda: all(map(_gone, pids.values())), what="every process is gone", seconds=60)
    assert inspect(layout).exit_code == NOT_RUNNING


def _came_back(tree: Tree, name: str, before: int) -> bool:
    (process,) = [process for process in tree.state().processes if process.name == name]
    return process.pid not in (0, before) and process.ready


def test_a_supervisor_that_is_killed_takes_everything_with_it(
    tmp_path: Path, trees: list[Tree], wait_until: Wait
) -> None:
    third = json.dumps([sys.executable, "-c", STUBBORN, str(tmp_path)])
    tree = _start(trees, tmp_path, "--third", third)
    tree.ready()
    pids = list(tree.pids().values())
    tree.process.kill()
    tree.process.wait(30)
    wait_until(lambda: all(map(_gone, pids)), what="every process is gone", seconds=30)
    report = inspect(tree.layout)
    assert (report.exit_code, report.problems) == (NOT_RUNNING, [])
    os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)

    (tmp_path / "third-ready").unlink()
    again = _start(trees, tmp_path, "--third", third)
    again.ready()
    grandchild = int((tmp_path / "grandchild").read_text())
    assert again.stop() == 0
    assert _gone(grandchild)  # it sat in the process group of a child that ignores SIGTERM


def test_a_broken_child_is_seen_by_status_and_ends_a_first_start(tmp_path: Path, trees: list[Tree]) -> None:
    third = json.dumps([sys.executable, "-c", "import sys; sys.exit('the disk is made of cheese')"])
    code, errors = _start(trees, tmp_path, "--third", third).fail()
    assert code == 3
    assert "third ended 4 times (status 1)" in errors
    assert "the disk is made of cheese" in errors  # the end of its log
    assert read_state(ServerLayout(tmp_path)) is None
    assert inspect(ServerLayout(tmp_path)).exit_code == NOT_RUNNING


def test_status_says_what_is_wrong(tmp_path: Path, trees: list[Tree], wait_until: Wait) -> None:
    third = json.dumps([sys.executable, "-c", STUBBORN, str(tmp_path)])
    tree = _start(trees, tmp_path, "--third", third)
    tree.ready()
    (tmp_path / "third-ready").unlink()
    os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)
    before = tree.pids()["third"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: inspect(tree.layout).exit_code == BROKEN, what="status sees it")
    assert any("third" in problem for problem in inspect(tree.layout).problems)
    wait_until(lambda: _came_back(tree, "third", before), what="third is back")
    assert tree.stop() == 0


def test_a_busy_port_is_named_with_its_part_and_its_option(tmp_path: Path, trees: list[Tree]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, errors = _start(trees, tmp_path, "--broker-port", str(port)).fail()
    assert code == 3
    assert f"port {port} of 127.0.0.1, for the MQTT broker, is in use by another program" in errors
    assert "--broker-port" in errors
    assert not (tmp_path / "logs" / "mosquitto.log").exists()


def test_a_missing_broker_is_said_with_how_to_install_it(tmp_path: Path, trees: list[Tree]) -> None:
    environment = dict(os.environ) | {"SKERRY_MOSQUITTO": "/nowhere/mosquitto"}
    code, errors = _start(trees, tmp_path, environment=environment).fail()
    assert code == 3
    assert "the MQTT broker is missing: /nowhere/mosquitto (SKERRY_MOSQUITTO) is not a program" in errors
    assert "apt-get install mosquitto" in errors


def test_a_program_that_is_not_mosquitto_is_refused(tmp_path: Path, trees: list[Tree]) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'mosquitto version 1.6.12'\n")
    program.chmod(0o755)
    environment = dict(os.environ) | {"SKERRY_MOSQUITTO": str(program)}
    code, errors = _start(trees, tmp_path / "data", environment=environment).fail()
    assert code == 3
    assert "is version 1.6.12: version 2 or later is needed, for MQTT 5" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--api-port", "0"], 2, "api-port"),
        (["--api-port", "many"], 2, "api-port"),
        (["--host", "203.0.113.1"], 3, "--host"),
        (["--colour"], 2, "No such option"),
    ],
)
def test_the_command_line_is_checked(tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    app = typer.Typer()
    app.command()(up)
    result = CliRunner().invoke(app, ["--data-dir", str(tmp_path / "data"), *arguments])
    assert result.exit_code == code, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "data" / "server.json").exists()


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = typer.Typer()
    app.command()(up)
    result = CliRunner().invoke(app, ["--data-dir", str(tmp_path / "file" / "data")])
    assert result.exit_code == 3
    assert "choose another with --data-dir" in result.output
