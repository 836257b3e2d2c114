"""A sensor that plays a recording: an ``.npz`` with ``signal`` [samples, channels], in its own time or faster.

Optional arrays: ``scale`` [channels] (multiplied with the signal), ``rate_hz``, ``offset`` [recordings + 1] (where
each of several recordings begins, and the end of the last; the time between them is a gap).
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.stream.sensors import READ_S, SensorEndedError, SensorGapError, SensorSettings

#: Most samples of one reading at full speed.
_BLOCK = 1024


class Replay:
    """Plays a file once."""

    def __init__(
        self,
        settings: SensorSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Read the file.

        Args:
            settings: ``argument`` is its path; ``rate_hz`` takes the place of the file's.
            monotonic: Seconds.
            sleep: Waits.

        Raises:
            DeviceError: It cannot be read.
            InputError: It is not a recording, or without a rate.
        """
        self._monotonic, self._sleep = monotonic, sleep
        path = Path(settings.argument)
        self._signal, self._scale, rate_hz, self._ends = _load(path)
        self.channels = self._signal.shape[1]
        self.rate_hz = settings.rate_hz or rate_hz
        self._speed = settings.speed
        if self._speed and not self.rate_hz:
            raise InputError(f"{path.name}: rate_hz", expected="a rate in the file, or --rate", got="none")
        self._played = 0
        self._began: float | None = None
        self._at_gap = False

    def read(self) -> npt.NDArray[np.float32]:
        """See :class:`~skerry_agent.stream.sensors.Sensor`."""
        if self._played == len(self._signal):
            raise SensorEndedError("the recording has ended")
        if self._at_gap:
            self._at_gap = False
            raise SensorGapError("another recording begins")
        end = min(self._due(), int(self._ends[np.searchsorted(self._ends, self._played, side="right")]))
        with np.errstate(over="ignore"):
            samples = (self._signal[self._played : end] * self._scale).astype(np.float32)
        self._played = end
        self._at_gap = end < len(self._signal) and bool(np.isin(end, self._ends))
        return samples

    def _due(self) -> int:
        """How many samples should have been played by now, after waiting for the next one for a while."""
        most = min(len(self._signal), self._played + _BLOCK)
        if not self._speed:
            return most
        per_s = self.rate_hz * self._speed
        now = self._monotonic()
        if self._began is None:
            self._began = now
        wait = self._began + (self._played + 1) / per_s - now
        if wait > 0:
            self._sleep(min(wait, READ_S))
            now = self._monotonic()
        return max(self._played, min(most, int((now - self._began) * per_s)))

    def close(self) -> None:
        """Nothing is open."""


def _load(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], float, npt.NDArray[np.int64]]:
    """Signal, scale, rate (0: none) and the index after the last sample of each recording."""
    try:
        archive: Any = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a single array")
        with archive:
            found = {name: archive[name] for name in ("signal", "scale", "rate_hz", "offset") if name in archive.files}
            names = ", ".join(archive.files)[:100]
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}", remedy="check the path") from error
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InputError(path.name, expected="an .npz file without pickles", got=error) from error
    signal = found.get("signal")
    if signal is None or signal.ndim != 2 or signal.dtype.kind not in "fiu" or 0 in signal.shape:
        got = names if signal is None else f"{signal.dtype} {list(signal.shape)}"
        raise InputError(f"{path.name}: signal", expected="numbers [samples, channels]", got=got)
    scale = found.get("scale", np.ones(1))
    if scale.dtype.kind not in "fiu" or scale.shape not in ((), (1,), (signal.shape[1],)):
        raise InputError(f"{path.name}: scale", expected=f"{signal.shape[1]} numbers", got=list(scale.shape))
    rate = found.get("rate_hz", np.zeros(()))
    if rate.dtype.kind not in "fiu" or rate.size != 1 or not 0 <= float(rate.reshape(())) < np.inf:
        raise InputError(f"{path.name}: rate_hz", expected="one number, 0 or more", got=rate.reshape(-1)[:3])
    offset = found.get("offset", np.array([0, len(signal)]))
    whole = offset.dtype.kind in "iu" and offset.ndim == 1 and len(offset) >= 2
    if not whole or offset[0] != 0 or offset[-1] != len(signal) or (np.diff(offset.astype(np.int64)) < 1).any():
        raise InputError(f"{path.name}: offset", expected=f"rising from 0 to {len(signal)}", got=offset.reshape(-1)[:5])
    return signal, scale.astype(np.float64), float(rate.reshape(())), offset[1:].astype(np.int64)
