"""Settings of a gateway and where its files lie. It is enrolled like a device: those files are the agent's."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError, InputError
from skerry_agent.files import write_atomically
from skerry_server import ports
from skerry_server.superlink import LANE_FOLDER, SuperLinkAccess

_LISTEN = re.compile(r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})\Z")


@dataclass(frozen=True)
class GatewayConfig:
    """Settings of one gateway.

    Attributes:
        listen_host: Address that the site's SuperLink listens on: all of them, loopback, or the one that the operator
            named in the gateway's token.
        listen_port: Its port.
    """

    listen_host: str
    listen_port: int

    @classmethod
    def parse(cls, listen: str) -> GatewayConfig:
        """From host:port; raises InputError."""
        found = _LISTEN.match(listen)
        if found is None or not 1 <= int(found["port"]) <= 65_535:
            raise InputError("--listen", expected="host:port, such as 0.0.0.0:9443", got=listen)
        return cls(found["host"].strip("[]"), int(found["port"]))


@dataclass(frozen=True)
class GatewayLayout:
    """Paths below one data directory."""

    root: Path

    @property
    def agent(self) -> AgentLayout:
        """Identity, trust, training state and run files."""
        return AgentLayout(self.root)

    @property
    def config(self) -> Path:
        """The written :class:`GatewayConfig`."""
        return self.root / "gateway.json"

    @property
    def roster(self) -> Path:
        """The newest roster of the control plane."""
        return self.root / "site" / "roster.json"

    @property
    def rounds(self) -> Path:
        """Updates of the rounds that are being collected."""
        return self.root / "site" / "rounds"

    @property
    def superlink(self) -> Path:
        """State of the site's SuperLink."""
        return self.root / "site" / "superlink"

    @property
    def secret(self) -> Path:
        """What shows the site's SuperLink that this gateway asks."""
        return self.root / "site" / "superlink-secret"

    @property
    def server_certificate(self) -> Path:
        """By which the site's devices know it."""
        return self.root / "site" / "server.pem"

    @property
    def server_key(self) -> Path:
        """Of that certificate; never leaves."""
        return self.root / "site" / "server.key"

    @property
    def authority(self) -> Path:
        """Certificate of the fleet's authority."""
        return self.root / "identity" / "authority.pem"

    @property
    def status(self) -> Path:
        """JSON: what the gateway is doing, for ``skerry-gateway status``."""
        return self.root / "run" / "site.json"

    def access(self, config: GatewayConfig) -> SuperLinkAccess:
        """How this gateway reaches its own SuperLink."""
        address = ports.join(ports.connect_address(config.listen_host), config.listen_port)
        return SuperLinkAccess(address, self.authority, self.secret, self.superlink / LANE_FOLDER / "blobs")


def save_config(layout: GatewayLayout, config: GatewayConfig) -> None:
    """Write the settings; raises OSError."""
    layout.root.mkdir(parents=True, exist_ok=True)
    write_atomically(layout.config, json.dumps(asdict(config), indent=2).encode())


def load_gateway_config(layout: GatewayLayout) -> GatewayConfig:
    """Read the settings; raises DeviceError."""
    try:
        document = json.loads(layout.config.read_bytes())
        host, port = document["listen_host"], document["listen_port"]
        if not isinstance(host, str) or not isinstance(port, int) or set(document) != {"listen_host", "listen_port"}:
            raise ValueError("expected listen_host and listen_port")
    except OSError as error:
        raise DeviceError(
            f"{layout.config} cannot be read ({error.strerror})", remedy="enrol it with `skerry-gateway enroll`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"{layout.config}: {error}", remedy="correct the file") from error
    return GatewayConfig.parse(ports.join(host, port))


def default_data_dir() -> Path:
    """``SKERRY_GATEWAY_DIR``, or ``/var/lib/skerry-gateway``."""
    return Path(os.environ.get("SKERRY_GATEWAY_DIR", "/var/lib/skerry-gateway"))
