"""Which SuperLink this device is a node of: its own control plane's, or for a campaign that of its site's gateway.

An invitation that names a gateway sends the device there; the next one without a gateway brings it home. Control writes
down where the last accepted invitation led, training goes there. A gateway that does not answer, or does not know the
device, for :data:`AWAY_S` is given up for :data:`HOME_S`, in which the device is at home, where it can be seen and
invited again; then it is tried again. So no gateway, alive or dead, can take a device out of the fleet.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from skerry_agent.files import write_atomically
from skerry_contract.v1.telemetry_pb2 import CampaignInvitation

logger = logging.getLogger(__name__)

#: How long a gateway may be away before the device goes home, and how long it stays there (seconds).
AWAY_S = 60.0
HOME_S = 300.0
#: The file is looked at so often (seconds).
LOOK_S = 1.0
#: host:port, the host a name, an IPv4 address, or an IPv6 address in brackets.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}\Z")


def follow(path: Path, invitation: CampaignInvitation) -> None:
    """Write down where an accepted invitation leads; one that names no usable gateway leads home.

    Raises:
        OSError: It cannot be written; what was there stands.
    """
    address = invitation.superlink_address if invitation.gateway_id else ""
    document = {"address": address if _ADDRESS.match(address) else "", "campaign_id": invitation.campaign_id}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document).encode())


class SuperLinkChoice:
    """Read by the training process; safe to call from several threads."""

    def __init__(self, home: str, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Choose.

        Args:
            home: host:port of the control plane's SuperLink.
            path: What :func:`follow` writes.
            clock: Seconds.
        """
        self._home = home
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._look_at = -1.0
        self._content = b""
        self._gateway = ""
        #: Since when the gateway has been away; 0: it is not, or the device is not there.
        self._away_since = 0.0
        self._home_until = 0.0

    def address(self) -> str:
        """host:port of the SuperLink to be at now."""
        now = self._clock()
        with self._lock:
            if now >= self._look_at:
                self._look_at = now + LOOK_S
                self._look()
            if not self._gateway or now < self._home_until:
                return self._home
            if self._away_since and now - self._away_since > AWAY_S:
                logger.warning("the gateway %s is away: this device goes home for %.0f s", self._gateway, HOME_S)
                self._away_since, self._home_until = 0.0, now + HOME_S
                return self._home
            return self._gateway

    def link(self, address: str, *, up: bool) -> None:
        """Hear whether the node at an address is connected."""
        with self._lock:
            if address == self._gateway:
                self._away_since = 0.0 if up else self._away_since or self._clock()

    def _look(self) -> None:
        try:
            content = self._path.read_bytes()
        except OSError:
            content = b""
        if content == self._content:
            return
        self._content = content
        self._away_since = self._home_until = 0.0
        try:
            address = str(json.loads(content)["address"]) if content else ""
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is broken, this device stays at home: %s", self._path, error)
            address = ""
        self._gateway = address if _ADDRESS.match(address) else ""
