"""A control plane's data directory for tests of jobs, training, registry and releases: real files, real SQLite."""

from __future__ import annotations

import socket
from pathlib import Path

from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.store.migrate import upgrade


def make_data_dir(root: Path) -> Path:
    """Configuration and migrated database, as the first start of ``skerry up`` leaves them."""
    layout = ServerLayout(root)
    root.mkdir(parents=True, exist_ok=True)
    ports = {
        name: _free_port()
        for name in (
            "api_port",
            "grpc_port",
            "broker_port",
            "broker_tls_port",
            "broker_data_port",
            "device_port",
            "superlink_port",
        )
    }
    config = ServerConfig(**ports)
    layout.config.write_text(config.model_dump_json())
    upgrade(layout.database_url(config))
    return root


def make_context(root: Path) -> ServerContext:
    """An open context on a fresh data directory."""
    return open_context(make_data_dir(root))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
