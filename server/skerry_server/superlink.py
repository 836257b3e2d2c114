"""Flower's SuperLink as a child process: its command line, environment and health.

Since flwr 1.40 the Fleet API (nodes), the Runtime API (server apps) and the Control API (``flwr run``) are HTTP on one
listener; their gRPC forms are not started.

``--isolation process``: the SuperLink starts no SuperExec and no process of its own for a run; the campaign job asks
for its task itself (:mod:`skerry_server.federation.flower`). flwr is not imported here: the process is told everything
by arguments and environment.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError

#: Name of the SuperLink among the supervised processes.
PROCESS_NAME = "superlink"
#: Path of the health check on its port.
HEALTH_PATH = "/health"


def find_superlink() -> Path:
    """Where ``flower-superlink`` is: beside this Python, or on the path.

    Raises:
        PlatformError: It is not installed.
    """
    beside = Path(sys.executable).with_name("flower-superlink")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("flower-superlink")
    if found is None:
        raise PlatformError("flower-superlink is not installed", remedy="run `pip install 'skerry[server]'`")
    return Path(found)


def command(program: Path, config: ServerConfig, layout: ServerLayout) -> list[str]:
    """The command line. Without TLS: the listener is on the address of the control plane, loopback by default."""
    return [
        str(program),
        "--insecure",
        "--host",
        config.host,
        "--port",
        str(config.superlink_port),
        "--database",
        str(layout.superlink / "state.db"),
        # A campaign's process is the ServerApp itself (federation/flower.py): the SuperLink starts none.
        "--isolation",
        "process",
    ]


def environment(layout: ServerLayout, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment: no telemetry, no look at the internet for updates, files below the data directory.

    Args:
        layout: Paths of the data directory.
        inherited: The environment to build on.
    """
    return dict(inherited) | {
        "FLWR_HOME": str(layout.superlink),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
