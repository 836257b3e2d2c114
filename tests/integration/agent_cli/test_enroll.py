"""`skerry-agent enroll` against an HTTP server that can misbehave; and the command line as a user meets it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from integration.link.broker import free_port
from skerry_agent import cli
from skerry_agent.config import AgentLayout, load_config
from unit.update.device import snapshot

GOOD = {
    "device_id": "press-07",
    "broker_host": "10.0.0.2",
    "broker_port": 8883,
    "broker_password": "hunter2",
    "superlink_address": "10.0.0.2:9092",
    "release_keys": ["ab" * 32],
}


class Server:
    """Answers every POST with what the test says."""

    def __init__(self) -> None:
        self.status = 201
        self.answer: Any = GOOD
        self.bodies: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/enroll"
                server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                data = server.answer if isinstance(server.answer, bytes) else json.dumps(server.answer).encode()
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(timeout=10)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def enroll(url: str, root: Path, *more: str, device_id: str = "press-07") -> int:
    return cli.run(
        ["enroll", "--server", url, "--token", "secret", "--device-id", device_id, "--data-dir", str(root), *more]
    )


def test_enrolment_writes_what_the_server_gave(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = enroll(
        server.url + "/", tmp_path / "d", "--label", "site=north", "--label", "line=2", "--set", "health_seconds=5"
    )
    assert code == 0
    assert "enrolled as press-07" in capsys.readouterr().out
    layout = AgentLayout(tmp_path / "d")
    config = load_config(layout)
    assert config.broker_password == "hunter2"
    assert (config.health_seconds, config.labels) == (5.0, {"site": "north", "line": "2"})
    assert stat.S_IMODE(layout.config.stat().st_mode) == 0o600
    assert server.bodies[0]["token"] == "secret"
    assert server.bodies[0]["labels"] == {"site": "north", "line": "2"}
    assert server.bodies[0]["device_class"] in ("x86_64", "aarch64", "jetson")


def test_an_enrolled_device_is_not_enrolled_again_unless_forced(server: Server, tmp_path: Path) -> None:
    assert enroll(server.url, tmp_path) == 0
    before = snapshot(tmp_path)
    server.answer = {**GOOD, "broker_password": "other"}
    assert enroll(server.url, tmp_path) == 3
    assert snapshot(tmp_path) == before
    assert len(server.bodies) == 1, "the token is not spent"
    assert enroll(server.url, tmp_path, "--force") == 0
    assert load_config(AgentLayout(tmp_path)).broker_password == "other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "site"], "--label: expected distinct key=value pairs, got site"),
        (["--label", "a=1", "--label", "a=2"], "--label: expected distinct key=value pairs"),
        (["--set", "colour=red"], "--set: expected one of"),
        (["--set", "broker_password=x"], "--set: expected one of"),
        (["--set", "http_port=70000"], "--set: http_port"),
        (["--set", "health_seconds=soon"], "--set: health_seconds"),
    ],
)
def test_wrong_arguments_spend_no_token(
    server: Server, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(server.url, tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == {}
    assert server.bodies == []


def test_a_bad_name_spends_no_token(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enroll(server.url, tmp_path, device_id="Press 7") == 2
    assert "--device-id: expected 1 to 63 characters" in capsys.readouterr().err
    assert server.bodies == []


@pytest.mark.parametrize(
    ("status", "answer", "code", "message"),
    [
        (403, {"detail": "the token was used by press-01"}, 2, "got 403 the token was used by press-01"),
        (422, b"<html>no</html>", 2, "got 422 <html>no</html>"),
        (503, {"title": "starting"}, 3, "answered 503 starting"),
        (201, b"hello", 3, "did not answer with a JSON object"),
        (201, b"[]", 3, "did not answer with a JSON object"),
        (201, {**GOOD, "device_id": "press-08"}, 3, "enrolled 'press-08' instead"),
        (201, {**GOOD, "broker_port": 0}, 2, "broker_port"),
        (201, {key: value for key, value in GOOD.items() if key != "release_keys"}, 2, "release_keys"),
        (201, {**GOOD, "release_keys": ["abcd"]}, 2, "release_keys: expected 32 bytes in hexadecimal"),
        (201, {**GOOD, "release_keys": ["zz" * 32]}, 2, "release_keys: expected 32 bytes in hexadecimal"),
    ],
)
def test_a_bad_answer_writes_nothing(
    server: Server,
    tmp_path: Path,
    status: int,
    answer: Any,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.status, server.answer = status, answer
    assert enroll(server.url, tmp_path) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, "one line, no traceback"
    assert snapshot(tmp_path) == {}


def test_a_server_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enroll(f"http://127.0.0.1:{free_port()}", tmp_path) == 3
    assert "cannot be reached" in capsys.readouterr().err
    assert enroll("ftp://somewhere", tmp_path) == 2
    assert "--server: expected a URL" in capsys.readouterr().err
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["status"], 3, "enrol the device"),
        (["run"], 3, "enrol the device"),
        (["dance"], 2, "No such command 'dance'"),
        (["enroll"], 2, "Missing option"),
        (["run", "--colour"], 2, "No such option"),
    ],
)
def test_errors_are_one_line_and_have_a_status(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    environment = {"SKERRY_AGENT_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-m", "skerry_agent.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(tmp_path) == {}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("enroll", "run", "status", "version"):
        assert command in text
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_broken_configuration_names_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.json").write_text(json.dumps({**GOOD, "http_port": -1}))
    assert cli.run(["status", "--data-dir", str(tmp_path)]) == 3
    assert "http_port" in capsys.readouterr().err
