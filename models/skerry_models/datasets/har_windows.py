"""From continuous phone recordings to labelled windows. Pure: arrays in, arrays out.

Recipe (also in the data's description): 50 Hz, windows of 128 samples (2.56 s) with half overlap, cut inside each
labelled segment from its first sample; gravity is a causal third-order Butterworth low-pass of the total acceleration
at 0.3 Hz over the whole recording, started in the steady state of the first sample; body acceleration is the rest,
rounded to 1/8192 g. A device can compute the same sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_models.task import Float32

#: Samples of a window.
WINDOW = 128
#: Samples between the starts of neighbouring windows.
STEP = 64
#: Sampling rate (Hz).
RATE_HZ = 50.0
#: Cut-off of the gravity filter (Hz).
GRAVITY_HZ = 0.3
#: Body acceleration is a multiple of this (g).
BODY_STEP = 1.0 / 8192.0

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """A labelled stretch of one recording.

    Attributes:
        activity: 0 to 11.
        start: First sample.
        stop: One past the last sample.
    """

    activity: int
    start: int
    stop: int


@dataclass(frozen=True)
class HarWindows:
    """All windows of a data set.

    Attributes:
        x: float32 [N, 128, 9]: body acceleration, rotation rate, total acceleration, each x y z.
        y: uint8 [N], 0 to 11.
        subject: uint8 [N], person.
        recording: uint8 [N].
        start: int32 [N], first sample in the recording.
        test: bool [N], whether the person belongs to the published test part.
        origin: Where the data came from, for messages.
    """

    x: Float32
    y: npt.NDArray[np.uint8]
    subject: npt.NDArray[np.uint8]
    recording: npt.NDArray[np.uint8]
    start: npt.NDArray[np.int32]
    test: npt.NDArray[np.bool_]
    origin: str


def body_acceleration(total: Samples) -> Samples:
    """Total acceleration without gravity.

    Args:
        total: float64 [T, 3], g, one whole recording.

    Returns:
        float64 [T, 3], g, rounded to :data:`BODY_STEP`.
    """
    from scipy import signal

    numerator, denominator = signal.butter(3, GRAVITY_HZ / (RATE_HZ / 2))
    state = signal.lfilter_zi(numerator, denominator)[:, None] * total[:1]
    gravity, _ = signal.lfilter(numerator, denominator, total, axis=0, zi=state)
    rounded: Samples = np.round((total - gravity) / BODY_STEP) * BODY_STEP
    return rounded


def cut_windows(total: Samples, gyro: Samples, segments: Iterable[Segment]) -> tuple[Float32, list[tuple[int, int]]]:
    """Windows of one recording.

    Args:
        total: float64 [T, 3], g.
        gyro: float64 [T, 3], rad/s.
        segments: Labelled stretches; those shorter than a window give none.

    Returns:
        float32 [N, 128, 9], and per window its activity and first sample.

    Raises:
        ValueError: The sensors differ in length, or a segment lies outside the recording.
    """
    if total.shape != gyro.shape or total.ndim != 2 or total.shape[1] != 3:
        raise ValueError(f"expected two recordings of shape [T, 3], got {total.shape} and {gyro.shape}")
    channels = np.concatenate([body_acceleration(total), gyro, total], axis=1).astype(np.float32)
    windows: list[Float32] = []
    described: list[tuple[int, int]] = []
    for segment in segments:
        if not 0 <= segment.start < segment.stop <= len(channels):
            raise ValueError(f"segment {segment.start} to {segment.stop} outside 0 to {len(channels)}")
        for start in range(segment.start, segment.stop - WINDOW + 1, STEP):
            windows.append(channels[start : start + WINDOW])
            described.append((segment.activity, start))
    stacked = np.stack(windows) if windows else np.empty((0, WINDOW, 9), dtype=np.float32)
    return stacked, described
