"""Ending sessions at the broker: by taking them over.

A broker that speaks MQTT 5 ends the connection of a client when another one connects with the same client identifier
(section 3.1.4 of the standard), and forgets its session when that one wants a clean start. mosquitto has no other way
to end a connection from outside. Only the control plane's own listener lets a client choose its identifier.

Written by hand instead of with a client library: it is one packet each way, for thousands of clients in a row.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

#: How long the broker may take to answer (seconds).
ANSWER_S = 5.0

_CONNECT, _CONNACK, _DISCONNECT = 0x10, 0x20, b"\xe0\x00"
_VERSION = 5
#: User name, password, clean start.
_FLAGS = 0b1100_0010
_KEEPALIVE_S = 10


class SessionCutError(Exception):
    """The broker did not do it; sessions before this one are ended.

    Attributes:
        client_id: Whose session.
        reason: What went wrong.
    """

    def __init__(self, client_id: str, reason: str) -> None:
        self.client_id = client_id
        self.reason = reason
        super().__init__(f"the session of {client_id} cannot be ended: {reason}")


def end_sessions(
    address: tuple[str, int], client_ids: Iterable[str], *, username: str, password: str, deadline_s: float = ANSWER_S
) -> None:
    """End the connections and sessions of some clients; one that has none is passed over.

    Args:
        address: The listener on which clients choose their identifiers.
        client_ids: Whose.
        username: A user of that listener.
        password: Its password.
        deadline_s: How long the broker may take for each.

    Raises:
        SessionCutError: The broker cannot be reached or refuses.
    """
    for client_id in client_ids:
        try:
            with socket.create_connection(address, timeout=deadline_s) as stream:
                stream.sendall(connect_packet(client_id, username=username, password=password))
                reason = _acknowledged(stream)
                if reason != 0:
                    raise SessionCutError(client_id, f"refused with reason {reason:#04x}")
                with contextlib.suppress(OSError):
                    stream.sendall(_DISCONNECT)
        except OSError as error:
            raise SessionCutError(client_id, str(error)) from error


def connect_packet(client_id: str, *, username: str, password: str) -> bytes:
    """An MQTT 5 CONNECT with a clean start and a session that ends with the connection (section 3.1)."""
    header = _text("MQTT") + struct.pack(">BBHB", _VERSION, _FLAGS, _KEEPALIVE_S, 0)
    body = header + _text(client_id) + _text(username) + _text(password)
    return bytes([_CONNECT]) + _length(len(body)) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def _length(number: int) -> bytes:
    """Variable byte integer (section 1.5.5)."""
    encoded = bytearray()
    while True:
        number, low = divmod(number, 128)
        encoded.append(low | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def _acknowledged(stream: socket.socket) -> int:
    """The reason code of the CONNACK (section 3.2), which stands in its fourth byte."""
    answer = b""
    while len(answer) < 4:
        more = stream.recv(64)
        if not more:
            raise ConnectionError("the broker closed the connection")
        answer += more
    if answer[0] != _CONNACK or answer[1] & 0x80:
        raise ConnectionError("the broker did not answer with CONNACK")
    return answer[3]
