"""Which processes ``skerry up`` runs, with their commands, environments and readiness checks."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from skerry_server import broker, ports, superlink
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.runtime.status_file import runtime_ready
from skerry_server.supervision.child import ChildSpec, http_ready, tcp_ready
from skerry_server.supervision.state_file import TreeState

#: Field of the configuration, what listens there, and the option of ``skerry up`` that chooses it.
PORTS: Mapping[str, tuple[str, str]] = {
    "api_port": ("the REST API and console", "--api-port"),
    "grpc_port": ("the gRPC API", "--grpc-port"),
    "broker_port": ("the MQTT broker", "--broker-port"),
    "broker_tls_port": ("control connections of devices (MQTT)", "--broker-tls-port"),
    "broker_data_port": ("data connections of devices (MQTT)", "--broker-data-port"),
    "device_port": ("the device API", "--device-port"),
    "superlink_port": ("the Flower SuperLink", "--superlink-port"),
}


def check_ports(config: ServerConfig) -> None:
    """Pass if every port can be listened on; raises PlatformError that names the first one that cannot."""
    for name, (part, option) in PORTS.items():
        host = broker.LOOPBACK if name == "broker_port" else config.host
        ports.check_free(host, getattr(config, name), part=part, option=option)


def children(config: ServerConfig, layout: ServerLayout) -> list[ChildSpec]:
    """The processes in the order of their start.

    Raises:
        PlatformError: mosquitto or Flower is not installed.
    """
    superlink.check_installed()
    host = ports.connect_address(config.host)
    inherited = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    return [
        ChildSpec(
            broker.PROCESS_NAME,
            broker.command(broker.find_mosquitto(), layout),
            tcp_ready(broker.LOOPBACK, config.broker_port),
            inherited,
        ),
        ChildSpec(
            superlink.PROCESS_NAME,
            superlink.command(config, layout),
            http_ready(
                f"https://{ports.join(host, config.superlink_port)}{superlink.HEALTH_PATH}",
                authority=layout.authority_certificate,
            ),
            superlink.environment(layout, inherited),
        ),
        ChildSpec(
            "api",
            _module("skerry_server.api", layout.root),
            http_ready(f"http://{ports.join(host, config.api_port)}/healthz"),
            inherited,
        ),
        ChildSpec(
            "runtime",
            _module("skerry_server.runtime", layout.root),
            runtime_ready(layout),
            inherited,
            stop_s=20.0,
        ),
    ]


def describe(config: ServerConfig) -> TreeState:
    """The addresses of the tree, as this machine reaches them."""
    host = ports.connect_address(config.host)
    return TreeState(
        pid=0,
        created_s=0.0,
        url=f"http://{ports.join(host, config.api_port)}",
        grpc=ports.join(host, config.grpc_port),
        broker=ports.join(broker.LOOPBACK, config.broker_port),
        broker_tls=ports.join(host, config.broker_tls_port),
        device_api=f"https://{ports.join(host, config.device_port)}",
        superlink=ports.join(host, config.superlink_port),
    )


def _module(name: str, data_dir: Path) -> list[str]:
    return [sys.executable, "-m", name, str(data_dir)]
