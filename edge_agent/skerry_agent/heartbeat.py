"""A process says that it moves; its supervisor notices when it stops saying so, dead or hung.

The supervisor gives each watched process one end of a pipe. The process writes a byte from the loop that must not
hang; nothing touches the disk, and a pipe that is full is as good as one that was read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

#: Environment variable with the number of the descriptor.
VARIABLE = "SKERRY_HEARTBEAT_FD"
_READ_BYTES = 4096


class Heartbeat:
    """The end of the process that is watched; does nothing if nobody watches."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Takes the descriptor over: processes that this one starts do not get it."""
        self._descriptor = -1
        number = environment.get(VARIABLE, "")
        if number.isascii() and number.isdigit():
            with contextlib.suppress(OSError):
                os.set_inheritable(int(number), False)
                os.set_blocking(int(number), False)
                self._descriptor = int(number)

    def beat(self) -> None:
        """Say that this process moves."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, b".")


class HeartbeatMonitor:
    """The end of the supervisor.

    Attributes:
        descriptor: To be inherited by the process that is watched; close it here once that has started.
    """

    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def close_writer(self) -> None:
        """Keep only the reading end."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def heard(self) -> bool:
        """Whether the process moved since the last call."""
        heard = False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, _READ_BYTES):
                heard = True
        return heard

    def close(self) -> None:
        """Close both ends."""
        self.close_writer()
        os.close(self._read)
