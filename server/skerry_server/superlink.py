"""Flower's SuperLink as a child process: its command line, environment, health, and who may ask it for what.

Since flwr 1.40 the Fleet API (nodes), the Runtime API (server apps) and the Control API (``flwr run``, ``flwr supernode
register``) are HTTP on one listener. That listener speaks TLS with the certificate of the control plane, and refuses a
node whose key is not registered. Control and Runtime API have no authentication of their own, so
:mod:`skerry_server.federation.flower.superlink_process` asks for the operator's secret in front of them: without it a
revoked device could register itself again.

``--isolation process``: the SuperLink starts no SuperExec and no process of its own for a run; the campaign job asks
for its task itself (:mod:`skerry_server.federation.flower.run`). flwr is not imported here: the process is told
everything by arguments and environment.
"""

from __future__ import annotations

import importlib.util
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skerry_server import ports
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.files import write_atomically

#: Name of the SuperLink among the supervised processes.
PROCESS_NAME = "superlink"
#: Path of the health check on its port.
HEALTH_PATH = "/health"
#: Name of the lane's folder below the SuperLink's.
LANE_FOLDER = "lane"
#: Header with the operator's secret.
SECRET_HEADER = "x-skerry-operator"  # noqa: S105 - a header's name


@dataclass(frozen=True)
class SuperLinkAccess:
    """How a process of the control plane reaches the SuperLink.

    Attributes:
        address: host:port, a name in the server's certificate.
        authority: File with the certificate of the authority that vouches for it.
        secret: File with the operator's secret.
        blobs: Folder that large parameters are exchanged through.
    """

    address: str
    authority: Path
    secret: Path
    blobs: Path


def check_installed() -> None:
    """Pass if flwr is there; raises PlatformError."""
    if importlib.util.find_spec("flwr") is None:
        raise PlatformError("Flower is not installed", remedy="run `pip install 'skerry[server]'`")


def access(config: ServerConfig, layout: ServerLayout) -> SuperLinkAccess:
    """How the processes of this data directory reach its SuperLink."""
    address = ports.join(ports.connect_address(config.host), config.superlink_port)
    return SuperLinkAccess(address, layout.authority_certificate, secret_file(layout), lane_folder(layout) / "blobs")


def secret_file(layout: ServerLayout) -> Path:
    """Where the operator's secret is."""
    return layout.keys / "superlink-operator-secret"


def lane_folder(layout: ServerLayout) -> Path:
    """Where the lane keeps messages and large parameters (:mod:`skerry_server.federation.flower.lane`)."""
    return layout.superlink / LANE_FOLDER


def ensure_secret(path: Path) -> str:
    """The operator's secret; made if there is none. Only the SuperLink's own process makes it, before it listens.

    Raises:
        OSError: It cannot be read or written.
    """
    if path.exists() and (secret := path.read_text().strip()):
        return secret
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = secrets.token_urlsafe(32)
    write_atomically(path, (secret + "\n").encode())
    return secret


def command(config: ServerConfig, layout: ServerLayout) -> list[str]:
    """The command line of the process."""
    return command_line(
        config.host,
        config.superlink_port,
        folder=layout.superlink,
        secret=secret_file(layout),
        authority=layout.authority_certificate,
        certificate=layout.server_certificate,
        key=layout.server_key,
    )


def command_line(
    host: str, port: int, *, folder: Path, secret: Path, authority: Path, certificate: Path, key: Path
) -> list[str]:
    """The command line of a SuperLink anywhere: a control plane's, or that of a site's gateway.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        folder: For its state and the lane's.
        secret: File with the operator's secret; made if there is none.
        authority: File with the certificate of the authority.
        certificate: File with its own certificate.
        key: File with the key of that.
    """
    return [
        sys.executable,
        "-m",
        "skerry_server.federation.flower.superlink_process",
        str(secret),
        str(folder / LANE_FOLDER),
        "--ssl-ca-certfile",
        str(authority),
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        "--enable-supernode-auth",
        "--host",
        host,
        "--port",
        str(port),
        "--database",
        str(folder / "state.db"),
        # A campaign's process is the ServerApp itself (federation/flower/run.py): the SuperLink starts none.
        "--isolation",
        "process",
    ]


def environment(layout: ServerLayout, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment: no telemetry, no look at the internet, nothing installed, files below the data directory.

    Args:
        layout: Paths of the data directory.
        inherited: The environment to build on.
    """
    return environment_of(layout.superlink, inherited)


def environment_of(folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The same for a SuperLink whose files lie in ``folder``."""
    return dict(inherited) | {
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
