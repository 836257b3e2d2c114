"""Samples become rows of the model's input: windows [channels, length] that begin ``hop`` samples apart (pure).

Invariants: at most ``length - 1`` samples are held between two pushes; a window never spans a gap; every window is a
copy that nobody else writes to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import InputError

Floats = npt.NDArray[np.float32]


class Window(NamedTuple):
    """One row.

    Attributes:
        x: float32 [channels, length], oldest sample first.
        at_ms: When its last sample was taken; None if the samples came without a time.
    """

    x: Floats
    at_ms: float | None


class Windower:
    """Collects samples of one stream; used by one thread."""

    def __init__(
        self, channels: int, length: int, *, hop: int, period_ms: float = 0.0, gap_ms: float | None = None
    ) -> None:
        """Holds nothing yet.

        Args:
            channels: Values of one sample, 1 or more.
            length: Samples of one window, 1 or more.
            hop: Samples from the beginning of a window to that of the next, 1 or more; more than ``length`` leaves
                samples out.
            period_ms: Time between two samples that come together (ms); 0 if it is not known.
            gap_ms: The first sample of a push may be so far (ms) from where the one before led to expect it; further,
                in either direction, is a gap. None: time makes no gap.
        """
        if min(channels, length, hop) < 1 or period_ms < 0 or (gap_ms is not None and gap_ms < 0):
            raise ValueError(f"windows of {channels} x {length} every {hop} samples ({period_ms} ms, gap {gap_ms} ms)")
        self._channels, self._length, self._hop = channels, length, hop
        self._period_ms, self._gap_ms = period_ms, gap_ms
        self._held: Floats = np.empty((0, channels), dtype=np.float32)
        self._skip = 0
        self._expected_ms: float | None = None
        self.gaps = 0

    @property
    def held(self) -> int:
        """Samples that wait for the rest of their window."""
        return len(self._held)

    def restart(self) -> None:
        """What comes next does not follow what came before: begin a new window."""
        self._held = self._held[:0]
        self._skip = 0
        self._expected_ms = None
        self.gaps += 1

    def push(self, samples: Floats, at_ms: float | None = None) -> list[Window]:
        """Take consecutive samples; returns the windows that they complete.

        Args:
            samples: float32 [n, channels]; n may be 0.
            at_ms: When the first of them was taken (ms).

        Raises:
            InputError: Another number of channels; nothing is taken.
        """
        if samples.ndim != 2 or samples.shape[1] != self._channels:
            raise InputError("samples", expected=f"[n, {self._channels}]", got=list(samples.shape))
        if not len(samples):
            return []
        if self._is_gap(at_ms):
            self.restart()
        self._expected_ms = None if at_ms is None else at_ms + len(samples) * self._period_ms
        left_out = min(self._skip, len(samples))
        self._skip -= left_out
        # A sample's index in `joined` less this is its index in `samples`.
        offset = len(self._held) - left_out
        joined = np.concatenate((self._held, samples[left_out:]), dtype=np.float32)
        windows = []
        start = 0
        while start + self._length <= len(joined):
            x = np.ascontiguousarray(joined[start : start + self._length].T)
            if np.may_share_memory(x, joined):
                x = x.copy()
            last = start + self._length - 1 - offset
            windows.append(Window(x, None if at_ms is None else at_ms + last * self._period_ms))
            start += self._hop
        self._skip += max(0, start - len(joined))
        self._held = joined[start:].copy()
        return windows

    def _is_gap(self, at_ms: float | None) -> bool:
        if self._gap_ms is None or at_ms is None or self._expected_ms is None:
            return False
        return abs(at_ms - self._expected_ms) > self._gap_ms
