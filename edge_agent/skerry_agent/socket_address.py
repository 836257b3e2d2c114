"""Addresses of unix sockets in folders of any depth.

``sockaddr_un`` holds 107 characters of path on Linux (unix(7)). A longer path is reached through a descriptor of its
folder, ``/proc/self/fd/N/name``, which names the same file for this process.
"""

from __future__ import annotations

import os
from pathlib import Path

from skerry_agent.errors import DeviceError

#: Longest path of a unix socket on Linux (bytes, without the final zero).
SOCKET_PATH_BYTES = 107


class SocketAddress:
    """The path under which this process binds or connects to a unix socket; keep it open as long as that is used.

    Attributes:
        path: The path itself, or one through a descriptor if it is too long.
    """

    def __init__(self, path: Path) -> None:
        """The folder of ``path`` must exist if the path is long.

        Raises:
            DeviceError: The path is too long and its folder cannot be reached in another way.
        """
        self._folder = -1
        self.path = path
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return
        try:
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = Path(f"/proc/self/fd/{self._folder}") / path.name
            if not self.path.parent.exists():
                raise FileNotFoundError(f"{self.path.parent} is not there")
        except OSError as error:
            self.close()
            raise DeviceError(
                f"the socket path {path} is longer than {SOCKET_PATH_BYTES} bytes, and its folder is no use: {error}",
                remedy="use a data directory with a shorter path",
            ) from error

    def close(self) -> None:
        """Give the descriptor back."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
