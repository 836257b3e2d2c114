"""The sensors of this device: jetson-stats where it is there and answers, the kernel otherwise."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from skerry_agent.errors import DeviceError
from skerry_agent.policy.sensors import KernelSensors, SensorReading, SensorSource

log = logging.getLogger(__name__)

#: Time between two tries to reach the service of jetson-stats (seconds).
AGAIN_S = 60.0


def open_jetson() -> SensorSource | None:
    """jetson-stats, or None where it is not installed; raises DeviceError if its service does not answer."""
    if importlib.util.find_spec("jtop") is None:
        return None
    from skerry_agent.policy.jetson import JetsonSensors

    return JetsonSensors()


class DeviceSensors:
    """Opened at the first reading; used by one thread.

    Args:
        saving: "yes", "no", or "auto": what the device says.
        kernel: What answers when there is nothing better.
        open_better: Gives a better source, or None for ever.
        monotonic: Seconds.
    """

    def __init__(
        self,
        saving: str = "auto",
        *,
        kernel: SensorSource | None = None,
        open_better: Callable[[], SensorSource | None] = open_jetson,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._saving = saving
        self._kernel = kernel or KernelSensors()
        self._open_better = open_better
        self._monotonic = monotonic
        self._better: SensorSource | None = None
        self._open_at: float | None = float("-inf")

    def read(self) -> SensorReading:
        """A reading of this moment."""
        reading = self._read_better() or self._kernel.read()
        return reading if self._saving == "auto" else replace(reading, saving=self._saving == "yes")

    def close(self) -> None:
        """Give the sources back."""
        self._kernel.close()
        if self._better is not None:
            self._better.close()
            self._better = None

    def _read_better(self) -> SensorReading | None:
        try:
            if self._better is None and self._open_at is not None and self._monotonic() >= self._open_at:
                self._better = self._open_better()
                if self._better is None:
                    self._open_at = None
            return None if self._better is None else self._better.read()
        except DeviceError as error:
            log.warning("%s; the kernel's sensors are read", error)
            self._open_at = self._monotonic() + AGAIN_S
            if self._better is not None:
                self._better.close()
                self._better = None
            return None
