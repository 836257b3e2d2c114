"""What comes from a source, made into rows. Whatever is wrong costs only itself and is told.

Invariant: nothing that a source delivers raises.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import InputError
from skerry_agent.stream.payloads import id_of, read_row, read_samples
from skerry_agent.stream.rows import Refusal, Row, RowQueue
from skerry_agent.stream.sensors import READ_SAMPLES
from skerry_agent.stream.windowing import Windower


@dataclass(frozen=True)
class Framing:
    """How rows are made.

    Attributes:
        windows: Whether samples come, to be cut into windows; otherwise whole rows.
        hop: Samples between the beginnings of two windows; 0: windows side by side.
        rate_hz: Samples a second; 0 if it is not known.
        gap_ms: See :class:`~skerry_agent.stream.windowing.Windower`; None: two and a half periods of a known rate.
        deadline_ms: How long after it came a row may take to be answered; None: for ever.
    """

    windows: bool
    hop: int = 0
    rate_hz: float = 0.0
    gap_ms: float | None = None
    deadline_ms: float | None = None

    def windower(self, shape: tuple[int, ...]) -> Windower:
        """For a model's input.

        Raises:
            InputError: Its shape is not [channels, length].
        """
        if len(shape) != 2:
            raise InputError("--take samples", expected="a model whose input is [channels, length]", got=list(shape))
        period_ms = 1000 / self.rate_hz if self.rate_hz else 0.0
        gap_ms = 2.5 * period_ms if self.gap_ms is None and self.rate_hz else self.gap_ms
        return Windower(shape[0], shape[1], hop=self.hop or shape[1], period_ms=period_ms, gap_ms=gap_ms)


@dataclass
class IntakeCounts:
    """What came.

    Attributes:
        messages: Messages or readings.
        unreadable: Those that held no row and no samples.
        samples: Samples that went into windows.
        gaps: How often a window was begun anew because samples were missing.
        rows: Rows that were queued.
    """

    messages: int = 0
    unreadable: int = 0
    samples: int = 0
    gaps: int = 0
    rows: int = 0


class Intake:
    """Fed by one thread of a source; :meth:`reshape` comes from another."""

    def __init__(
        self,
        framing: Framing,
        shape: tuple[int, ...],
        queue: RowQueue,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], float] = lambda: time.time_ns() / 1e6,
    ) -> None:
        """Raises InputError if the framing does not fit the shape."""
        self.counts = IntakeCounts()
        self._framing = framing
        self._queue = queue
        self._monotonic, self._now_ms = monotonic, now_ms
        self._lock = threading.Lock()
        self._prefix = secrets.token_hex(4)
        self._shape = shape
        self._windower = framing.windower(shape) if framing.windows else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows that are made."""
        return self._shape

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Make rows of another shape from now on.

        Raises:
            InputError: The framing does not fit it; rows stay as they are, and the model refuses them.
        """
        windower = self._framing.windower(shape) if self._framing.windows else None
        with self._lock:
            self._shape, self._windower = shape, windower

    def payload(self, data: bytes) -> None:
        """Take a message of a topic."""
        now_ms = self._now_ms()
        self.counts.messages += 1
        try:
            with self._lock:
                rows = self._rows_of(data, now_ms)
        except InputError as error:
            self._refuse(error, now_ms, id_of(data))
            return
        self._queue_rows(rows)

    def samples(self, samples: npt.NDArray[np.float32]) -> None:
        """Take a reading of a sensor."""
        now_ms = self._now_ms()
        self.counts.messages += 1
        try:
            _check_reading(samples)
            with self._lock:
                rows = self._windows(samples, None, now_ms)
        except InputError as error:
            self._refuse(error, now_ms, "")
            return
        self._queue_rows(rows)

    def restart(self) -> None:
        """Samples were lost."""
        with self._lock:
            if self._windower is not None:
                self._windower.restart()
        self.counts.gaps += 1

    def refuse(self, error: InputError) -> None:
        """Tell of something that a source could not read."""
        self._refuse(error, self._now_ms(), "")

    def _rows_of(self, data: bytes, now_ms: float) -> list[Row]:
        if self._windower is None:
            found = read_row(data, self._shape)
            return [self._row(found.values, found.id, now_ms if found.at_ms is None else found.at_ms)]
        found = read_samples(data, self._shape[0])
        return self._windows(found.values, found.at_ms, now_ms)

    def _windows(self, samples: npt.NDArray[np.float32], at_ms: float | None, now_ms: float) -> list[Row]:
        if self._windower is None:
            raise InputError("samples", expected="--take samples", got="rows")
        gaps = self._windower.gaps
        windows = self._windower.push(samples, at_ms)
        self.counts.samples += len(samples)
        self.counts.gaps += self._windower.gaps - gaps
        return [self._row(window.x, "", now_ms if window.at_ms is None else window.at_ms) for window in windows]

    def _row(self, x: npt.NDArray[np.float32], name: str, at_ms: float) -> Row:
        self.counts.rows += 1
        deadline_ms = self._framing.deadline_ms
        due_s = None if deadline_ms is None else self._monotonic() + deadline_ms / 1000
        return Row(x, name or f"{self._prefix}-{self.counts.rows}", at_ms, due_s)

    def _queue_rows(self, rows: list[Row]) -> None:
        for row in rows:
            self._queue.put(row)

    def _refuse(self, error: InputError, now_ms: float, name: str) -> None:
        self.counts.unreadable += 1
        self._queue.tell(Refusal(name, str(error), now_ms))


def _check_reading(samples: object) -> None:
    """A sensor may be anybody's code."""
    expected = f"float32 [n, channels], n at most {READ_SAMPLES}"
    if not isinstance(samples, np.ndarray):
        raise InputError("samples", expected=expected, got=type(samples).__name__)
    if samples.dtype != np.float32 or samples.ndim != 2 or len(samples) > READ_SAMPLES:
        raise InputError("samples", expected=expected, got=f"{samples.dtype} {list(samples.shape)}")
