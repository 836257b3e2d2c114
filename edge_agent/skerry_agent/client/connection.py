"""A connection to the shared-memory door: the agreement about the memory, and who said no."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from skerry_agent.client.errors import DisconnectedError, error_of
from skerry_agent.errors import DeviceError
from skerry_agent.serving.shared_memory_layout import (
    HEAD,
    MESSAGE_BYTES,
    Hello,
    Kind,
    LayoutError,
    Welcome,
    decode_refused,
    decode_welcome,
    encode_hello,
)
from skerry_agent.serving.shared_memory_region import ClientRegion
from skerry_agent.socket_address import SocketAddress


class Connection:
    """A socket and the memory that goes with it.

    Args:
        path: The door's socket.
        hello: What to ask for.
        timeout: How long to wait for an answer (s).

    Attributes:
        socket: Connected.
        descriptor: Of the socket.
        welcome: What the server has given.
        row_bytes: One row of input.
        free: Slots that no request is in.
        done: Slot to the number of the request that was answered there and not received yet.

    Raises:
        ServingError: Not connected; nothing is left open.
    """

    def __init__(self, path: Path, hello: Hello, timeout: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = self.socket.fileno()
        self._region: ClientRegion | None = None
        try:
            # The kernel's own timeout: a wait is one system call, not a poll and a read.
            interval = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
            address = SocketAddress(path)
            try:
                self.socket.connect(str(address.path))
            finally:
                address.close()
            self.agree(hello)
        except DeviceError as error:
            self.close()
            raise DisconnectedError(str(error)) from error
        except BlockingIOError as error:
            self.close()
            raise DisconnectedError(f"no answer within {timeout:g} s from {path}") from error
        except OSError as error:
            self.close()
            raise DisconnectedError(f"no serving process answers at {path}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def agree(self, hello: Hello) -> None:
        """Say hello and take the memory; again after the model has changed."""
        self._close_region()
        self.socket.send(encode_hello(hello), socket.MSG_NOSIGNAL)
        data, descriptors, _, _ = socket.recv_fds(self.socket, MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        taken = list(descriptors)
        try:
            if not data:
                raise DisconnectedError("the serving process has closed the connection")
            check_refusal(data)
            try:
                self.welcome: Welcome = decode_welcome(data)
                if len(taken) != 1:
                    raise LayoutError(f"welcome: expected one descriptor, got {len(taken)}")
            except LayoutError as error:
                raise DisconnectedError(f"the serving process speaks another version: {error}") from error
            self._region = ClientRegion(self.welcome.geometry, taken.pop())
        finally:
            for descriptor in taken:
                os.close(descriptor)
        self.free = list(range(self.welcome.geometry.slots))
        self.row_bytes = self.welcome.geometry.row_bytes
        self.done: dict[int, int] = {}

    @property
    def region(self) -> ClientRegion:
        """The memory."""
        if self._region is None:
            raise DisconnectedError("the connection is closed")
        return self._region

    def close(self) -> None:
        """Hang up and unmap."""
        self.socket.close()
        self._close_region()

    def _close_region(self) -> None:
        if self._region is not None:
            self._region.close()
            self._region = None


def check_refusal(data: bytes) -> None:
    """Raise what a refusal says; nothing happens for another message."""
    if len(data) >= HEAD.size and HEAD.unpack_from(data)[0] == Kind.REFUSED:
        try:
            status, detail = decode_refused(data)
        except LayoutError as error:
            raise DisconnectedError(f"the serving process speaks another version: {error}") from error
        raise error_of(status, detail)
