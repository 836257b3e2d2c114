"""TCP ports: choosing free ones once, and saying clearly which one is taken."""

from __future__ import annotations

import contextlib
import errno
import socket

from skerry_server.errors import PlatformError


def free_ports(host: str, count: int) -> list[int]:
    """``count`` distinct ports of ``host`` that nobody listens on at this moment.

    Raises:
        PlatformError: ``host`` is not an address of this machine.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_socket(host)) for _ in range(count)]
        for one in sockets:
            _bind(one, host, 0, part="any port", option="--host")
        return [int(one.getsockname()[1]) for one in sockets]


def check_free(host: str, port: int, *, part: str, option: str) -> None:
    """Pass if ``port`` can be listened on.

    Args:
        host: Address to listen on.
        port: Port to try.
        part: What wants it, for the error ("the REST API").
        option: The option of ``skerry up`` that chooses another ("--api-port").

    Raises:
        PlatformError: It is taken, or not allowed for this user, or ``host`` is not an address of this machine.
    """
    with _socket(host) as one:
        # Connections of the listener before us may linger; the parts set this option as well.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(one, host, port, part=part, option=option)
        one.listen(1)


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """A bound socket for a server of this process; ``setting`` of server.json chooses its port.

    Raises:
        PlatformError: The port is taken, or cannot be opened.
    """
    listener = _socket(host)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PlatformError(
            f"port {port} of {host} cannot be opened ({error.strerror})",
            remedy=f"end the program that uses it, or set another {setting} in server.json",
        ) from error
    return listener


def connect_address(host: str) -> str:
    """The address by which this machine reaches a listener on ``host``: loopback for a wildcard."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def reachable_address(host: str) -> str:
    """The address by which other machines reach a listener on ``host``: for a wildcard, that of the default route."""
    if connect_address(host) == host:
        return host
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.connect((elsewhere, 9))  # chooses a route; a datagram socket sends nothing here
        except OSError:
            return connect_address(host)
        return str(one.getsockname()[0])


def join(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def _bind(one: socket.socket, host: str, port: int, *, part: str, option: str) -> None:
    try:
        one.bind((host, port))
    except (OSError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            raise PlatformError(
                f"port {port} of {host}, for {part}, is in use by another program",
                remedy=f"stop that program, or choose another port with {option}",
            ) from error
        if number == errno.EACCES:
            raise PlatformError(
                f"port {port} of {host}, for {part}, is not allowed for this user",
                remedy=f"choose one above 1023 with {option}",
            ) from error
        raise PlatformError(
            f"{part} cannot listen on {host}:{port} ({error})",
            remedy="give an address of this machine with --host, such as 127.0.0.1 or 0.0.0.0",
        ) from error
