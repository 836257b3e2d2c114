"""Where the doors of the network listen."""

from __future__ import annotations

import socket

from skerry_agent.errors import DeviceError

_BACKLOG = 128


def listen(host: str, port: int, *, door: str, setting: str) -> socket.socket:
    """A listening TCP socket.

    Args:
        host: An address, IPv6 with colons.
        port: 0 picks a free one.
        door: What is called so in the error.
        setting: Of the port, in ``agent.json``.

    Raises:
        DeviceError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With protocol 0 asyncio would not switch Nagle's algorithm off, and every answer would wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise DeviceError(
            f"the {door} door cannot listen on {host} port {port} ({error.strerror})",
            remedy=f"free the port, or set {setting} to 0",
        ) from error
    return listener
