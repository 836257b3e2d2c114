"""The API in a process of its own, as ``skerry up`` starts it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

START_S = 60.0
STOP_S = 20.0


def spawn(folder: Path) -> subprocess.Popen[str]:
    """Start it; its output is captured."""
    command = [sys.executable, "-m", "skerry_server.api", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    """Return when it answers; fail when it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", trust_env=False, timeout=5).is_success:
                return
        if process.poll() is not None:
            raise AssertionError(f"the API ended with {process.returncode}: {process.communicate()[0]}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the API does not answer: {process.communicate()[0]}")
        time.sleep(0.05)


@contextlib.contextmanager
def running_api(folder: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that answers; it is asked to end afterwards, and must."""
    process = spawn(folder)
    try:
        wait_until_ready(process, url)
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
