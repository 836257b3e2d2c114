"""A sensor that reads samples as bare little-endian float32 from standard input, a FIFO, a device or a file."""

from __future__ import annotations

import os
import select
import stat

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.stream.sensors import READ_S, READ_SAMPLES, SensorEndedError, SensorSettings

#: Most bytes of one read.
_READ_BYTES = 1 << 18


class RawFrames:
    """Samples of ``channels`` numbers each, one after the other.

    A FIFO never ends: writers come and go. Standard input and files end where they end; a sample that is not whole by
    then is an InputError.
    """

    def __init__(self, settings: SensorSettings) -> None:
        """Open it.

        Args:
            settings: ``argument`` is "-" for standard input, or a path.

        Raises:
            DeviceError: It cannot be opened.
        """
        self.channels = settings.channels
        self.rate_hz = settings.rate_hz or 0.0
        self._argument = settings.argument or "-"
        self._frame = 4 * self.channels
        self._rest = b""
        self._ended = False
        self._owned = self._argument != "-"
        self._descriptor = 0 if not self._owned else _open(self._argument)

    def read(self) -> npt.NDArray[np.float32]:
        """See :class:`~skerry_agent.stream.sensors.Sensor`.

        Raises:
            InputError: The input ended within a sample; after that it is at its end.
        """
        if self._ended:
            raise SensorEndedError(f"{self._argument} has ended")
        ready, _, _ = select.select([self._descriptor], [], [], READ_S)
        if not ready:
            return np.empty((0, self.channels), dtype=np.float32)
        try:
            data = os.read(self._descriptor, min(_READ_BYTES, READ_SAMPLES * self._frame))
        except BlockingIOError:
            return np.empty((0, self.channels), dtype=np.float32)
        if not data:
            self._ended = True
            if self._rest:
                raise InputError(
                    self._argument, expected=f"samples of {self._frame} bytes", got=f"{len(self._rest)} at the end"
                )
            raise SensorEndedError(f"{self._argument} has ended")
        data = self._rest + data
        whole = len(data) - len(data) % self._frame
        self._rest = data[whole:]
        return np.frombuffer(data[:whole], dtype="<f4").astype(np.float32).reshape(-1, self.channels)

    def close(self) -> None:
        """See :class:`~skerry_agent.stream.sensors.Sensor`; standard input stays open."""
        if self._owned:
            self._owned, self._ended = False, True
            os.close(self._descriptor)


def _open(path: str) -> int:
    try:
        # A FIFO that is open for writing, too, does not end with its last writer (fifo(7)).
        mode = os.O_RDWR if stat.S_ISFIFO(os.stat(path).st_mode) else os.O_RDONLY  # noqa: PTH116 -- beside os.open
        return os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}", remedy="check the path and who may read it") from error
