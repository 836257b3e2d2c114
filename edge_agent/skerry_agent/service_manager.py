"""Speaks with systemd, where it started the agent: ready, alive, stopping (sd_notify(3), sd_watchdog_enabled(3))."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)
#: What a service manager sets for the main process; it is not for the children.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Sends one datagram per message; without a service manager nothing is sent."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads :data:`VARIABLES`; the watchdog is fed at half of its time."""
        self._monotonic = monotonic
        self._socket: socket.socket | None = None
        self._period_s = _watchdog_s(environment) / 2
        self._feed_at = float("-inf")
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            return
        if address.startswith("@"):
            address = "\0" + address[1:]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.setblocking(False)
            self._socket.connect(address)
        except OSError as error:
            log.warning("the service manager cannot be told anything: %s", error)
            self.close()

    def ready(self) -> None:
        """The agent runs."""
        self._send("READY=1")

    def alive(self) -> None:
        """The supervisor moves; sent when it is due."""
        now = self._monotonic()
        if self._period_s and now >= self._feed_at:
            self._feed_at = now + self._period_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The agent was told to stop."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(message.encode())


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Time within which the watchdog wants to be fed (seconds); 0: there is none, or it is for another process."""
    text, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or process not in ("", str(os.getpid())):
        return 0.0
    return int(text) / 1e6
