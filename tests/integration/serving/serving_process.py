"""The serving process as a child, and a plain HTTP client that can send nonsense."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from skerry_agent.config import AgentLayout


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class ServingProcess:
    """``python -m skerry_agent.serving``; ended at the end of the ``with`` block.

    Attributes:
        process: The child.
        http_port, grpc_port: Of its doors.
    """

    def __init__(self, layout: AgentLayout) -> None:
        self.layout = layout
        self.process: subprocess.Popen[bytes]
        self.http_port = self.grpc_port = 0

    def start(self) -> None:
        log = (self.layout.root / "serving.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skerry_agent.serving", str(self.layout.root)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"serving did not start: {self.log()}")
            if self.layout.serving_file.exists():
                document = json.loads(self.layout.serving_file.read_text())
                if document["pid"] == self.process.pid:
                    self.http_port, self.grpc_port = document["http_port"], document["grpc_port"]
                    return
            time.sleep(0.02)

    def log(self) -> str:
        return (self.layout.root / "serving.log").read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=20)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, document: Any) -> Reply:
        return self.request("POST", path, json.dumps(document).encode())

    def status(self) -> Any:
        return self.request("GET", "/v1/status").document

    def __enter__(self) -> ServingProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)


def mapped_files(pid: int) -> set[str]:
    """Names of the files that a process has mapped: which native libraries it has loaded."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.rsplit("/", 1)[-1] for line in lines if "/" in line}
