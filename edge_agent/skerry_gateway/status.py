"""What a gateway is doing, in one small file that its process writes and ``skerry-gateway status`` reads."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from skerry_agent.files import write_atomically
from skerry_gateway.worker import RoundFigures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GatewayState:
    """What the file says.

    Attributes:
        gateway_id: Its name.
        site: That it sums for; empty before the first roster.
        address: At which the site's devices reach it.
        devices: Of the site.
        connected: Those that are nodes of its SuperLink.
        node_id: Of the gateway at the control plane's SuperLink, decimal; "0" while there is none.
        detail: What it does, or what it waits for.
        round: The newest round that it answered.
    """

    gateway_id: str = ""
    site: str = ""
    address: str = ""
    devices: int = 0
    connected: int = 0
    node_id: str = "0"
    detail: str = "starting"
    round: RoundFigures = field(default_factory=RoundFigures)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class GatewayStatus:
    """Keeps the state and the file; safe to call from several threads."""

    def __init__(self, path: Path, gateway_id: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._state = GatewayState(gateway_id)
        self._written = GatewayState()

    @property
    def state(self) -> GatewayState:
        """Of this moment."""
        return self._state

    def change(self, **fields: Any) -> None:
        """Replace fields, and the file if anything changed."""
        with self._lock:
            self._state = replace(self._state, **fields)
            if self._state == self._written:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(self._state.document(), sort_keys=True).encode())
            except OSError as error:
                logger.warning("%s cannot be written: %s", self._path, error)
                return
            self._written = self._state


def read_state(path: Path) -> GatewayState:
    """What the file says; the defaults when there is none or it is broken."""
    try:
        document = json.loads(path.read_bytes())
        return GatewayState(**{**document, "round": RoundFigures(**document["round"])})
    except (OSError, ValueError, KeyError, TypeError):
        return GatewayState()
