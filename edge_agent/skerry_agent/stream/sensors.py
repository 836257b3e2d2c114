"""What a sensor is, and the sensors that there are: our own and those of the entry point group ``skerry.sensors``.

A package adds one with::

    [project.entry-points."skerry.sensors"]
    imu = "my_package.imu:open_imu"          # Callable[[SensorSettings], Sensor]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import AgentError, InputError

GROUP = "skerry.sensors"
#: How long a sensor may wait for samples before it gives what it has (s).
READ_S = 0.2
#: Most samples of one reading.
READ_SAMPLES = 65_536


class SensorEndedError(AgentError):
    """There are no more samples, and there never will be. Not a fault."""


class SensorGapError(AgentError):
    """Samples were lost: what is read next does not follow what was read before."""


@dataclass(frozen=True)
class SensorSettings:
    """How a sensor is opened.

    Attributes:
        argument: What stands behind its name; may be empty.
        channels: Values of a sample that the model takes.
        rate_hz: Samples a second that the user asks for; None: the sensor's own.
        speed: For recordings: how many times faster than they were taken; 0: as fast as possible.
    """

    argument: str
    channels: int
    rate_hz: float | None = None
    speed: float = 1.0


class Sensor(Protocol):
    """A stream of samples; used by one thread."""

    @property
    def channels(self) -> int:
        """Values of one sample."""
        ...

    @property
    def rate_hz(self) -> float:
        """Samples a second; 0 if it is not known."""
        ...

    def read(self) -> npt.NDArray[np.float32]:
        """The samples since the last call: float32 [n, channels], oldest first.

        Waits at most about :data:`READ_S` for the first one; n may be 0, and is at most :data:`READ_SAMPLES`.

        Raises:
            SensorGapError: Samples were lost before the ones that the next call gives.
            SensorEndedError: There are no more.
            OSError: The sensor does not work; it is closed and opened again.
        """
        ...

    def close(self) -> None:
        """Give the device back; not an error when it is closed already."""
        ...


OpenSensor = Callable[[SensorSettings], Sensor]


def open_raw(settings: SensorSettings) -> Sensor:
    """Bare float32 from a descriptor."""
    from skerry_agent.stream.raw_frames import RawFrames

    return RawFrames(settings)


def open_replay(settings: SensorSettings) -> Sensor:
    """A recording."""
    from skerry_agent.stream.replay import Replay

    return Replay(settings)


#: Kinds of our own. Not taken from the entry points, so that nobody replaces them.
BUILT_IN: dict[str, OpenSensor] = {"raw": open_raw, "replay": open_replay}


def find_sensor(name: str) -> OpenSensor:
    """How a kind of sensor is opened.

    Raises:
        InputError: There is none of that name, or its package does not load; lists those that there are.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    others: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}
    if name not in others:
        known = ", ".join(sorted({*BUILT_IN, *others}))
        raise InputError("--from", expected=f"one of the sensors {known}", got=f"sensor:{name}")
    try:
        found: OpenSensor = others[name].load()
    except Exception as error:  # whatever a foreign package does when it is imported
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"sensor {name}", expected="a package that loads", got=said) from error
    return found
