"""One question and its answer over a unix socket, between two processes of one agent.

Four bytes of length, big endian, then the message; one of each per connection. It is all that two processes of one user
need of a remote procedure call: an RPC library would cost the asking process 15 MB.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from skerry_agent.errors import AgentError

_LENGTH = struct.Struct(">I")
#: Longest message (bytes).
MESSAGE_BYTES = 256 << 10


class LocalCallError(AgentError):
    """No answer: nobody listens, it took too long, or what came is no message."""


class LocalCall:
    """A question under way. :meth:`poll` never waits; close it when the answer is not needed any more.

    Args:
        path: Socket of who answers.
        request: The question.
        timeout_s: How long the answer may take (seconds).
        monotonic: Seconds.
    """

    def __init__(
        self, path: Path, request: bytes, *, timeout_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._unsent = _LENGTH.pack(len(request)) + request
        self._received = b""
        self._monotonic = monotonic
        self._deadline = monotonic() + timeout_s
        self._failure = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            # A unix socket is connected at once, or its queue of connections is full.
            self._socket.connect(str(path))
        except OSError as error:
            self._failure = f"nobody answers at {path.name}: {error.strerror}"

    def poll(self) -> bytes | None:
        """The answer, or None while there is none.

        Raises:
            LocalCallError: There will be none.
        """
        if not self._failure:
            with contextlib.suppress(BlockingIOError):
                try:
                    self._advance()
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    self._failure = f"the connection is lost: {error.strerror}"
        whole = _whole(self._received)
        if whole is not None:
            return whole
        if not self._failure and self._monotonic() > self._deadline:
            self._failure = "no answer in time"
        if self._failure:
            raise LocalCallError(self._failure)
        return None

    def close(self) -> None:
        """Give the connection back, answered or not."""
        self._socket.close()

    def _advance(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        while _whole(self._received) is None:
            part = self._socket.recv(64 << 10)
            if not part:
                self._failure = "the connection was closed before the answer"
                return
            self._received += part
            if len(self._received) >= _LENGTH.size and _size(self._received) > MESSAGE_BYTES:
                self._failure = f"an answer of {_size(self._received)} bytes"
                return


def answer_one(connection: socket.socket, handle: Callable[[bytes], bytes], *, timeout_s: float) -> None:
    """Answer the question of a connection and close it.

    Args:
        connection: From ``accept``.
        handle: Question to answer; must not raise.
        timeout_s: How long each of reading and writing may take (seconds).

    Raises:
        OSError: The asking side went away, or sent no message in time.
    """
    with connection:
        connection.settimeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        received = b""
        while (request := _whole(received)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("no whole question in time")
            part = connection.recv(64 << 10)
            if not part:
                raise ConnectionResetError("closed before the question")
            received += part
            if len(received) >= _LENGTH.size and _size(received) > MESSAGE_BYTES:
                raise ConnectionResetError(f"a question of {_size(received)} bytes")
        reply = handle(request)
        connection.sendall(_LENGTH.pack(len(reply)) + reply)


def _size(data: bytes) -> int:
    return int(_LENGTH.unpack_from(data)[0])


def _whole(data: bytes) -> bytes | None:
    """The message, if all of it is there."""
    if len(data) < _LENGTH.size or len(data) < _LENGTH.size + _size(data):
        return None
    return data[_LENGTH.size : _LENGTH.size + _size(data)]
