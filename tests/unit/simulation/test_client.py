"""The patient client: repeats what failed, never makes a thing twice, tells what it saw last."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from skerry_simulation.client import ControlPlaneClient
from skerry_simulation.errors import StepError


class Script(HTTPServer):
    """Answers with a list of (status, document); "drop" closes the connection after doing the work."""

    def __init__(self, answers: list[tuple[int, object]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.made: list[object] = []


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.made.append(json.loads(self.rfile.read(length)))
        self._answer()

    def _answer(self) -> None:
        status, document = self.server.answers.pop(0)
        if document == "drop":
            self.close_connection = True
            self.connection.close()
            return
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(*answers: tuple[int, object]) -> Iterator[tuple[Script, ControlPlaneClient]]:
    script = Script(list(answers))
    thread = threading.Thread(target=script.serve_forever, daemon=True)
    thread.start()
    client = ControlPlaneClient(f"http://127.0.0.1:{script.server_port}", "token", patience_s=5)
    try:
        yield script, client
    finally:
        client.close()
        script.shutdown()
        thread.join(timeout=10)
        script.server_close()


def test_a_server_in_trouble_is_asked_again() -> None:
    with serving((503, {}), (200, {"a": 1})) as (_, client):
        assert client.get("/x") == {"a": 1}


def test_a_refusal_is_final_and_quoted() -> None:
    with serving((404, {"error": "there is no device 'x'"})) as (script, client):
        with pytest.raises(StepError, match="there is no device"):
            client.get("/v1/devices/x")
        assert script.answers == []


def test_what_arrived_before_the_connection_broke_is_not_made_again() -> None:
    with serving((0, "drop")) as (script, client):
        made = client.post("/v1/rollouts", {"r": 1}, existing=lambda: {"id": "r-1"} if script.made else None)
        assert made == {"id": "r-1"}
        assert script.made == [{"r": 1}]


def test_pages_are_read_to_the_end() -> None:
    first = {"items": [{"id": "a"}], "next_page_token": "t"}
    with serving((200, first), (200, {"items": [{"id": "b"}], "next_page_token": ""})) as (_, client):
        assert [row["id"] for row in client.items("/v1/devices")] == ["a", "b"]


def test_waiting_ends_at_a_dead_end_and_at_the_deadline() -> None:
    with serving((200, {"state": "failed", "why": "no quorum"})) as (_, client), pytest.raises(StepError) as caught:
        client.wait_for(
            "/x", what="a campaign", until=lambda row: row["state"] == "finished",
            failed=lambda row: row["why"] if row["state"] == "failed" else None, seconds=5,
        )  # fmt: skip
    assert caught.value.reason == "no quorum"
    with serving((200, {"state": "running"})) as (_, client), pytest.raises(StepError, match="running"):
        client.wait_for("/x", what="a campaign", until=lambda row: row["state"] == "finished", seconds=0)
