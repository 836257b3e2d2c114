"""The device's own validation split: a sample's content decides, so it stays on its side while the store changes.

A sample must never move from training to validation between two rounds, or the validation accuracy would be that of
memorised samples. Positions change when the store evicts; content does not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from skerry_agent.training.trainer import Inputs, Labels

#: Share of the labelled samples that is held back.
VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class SplitSamples:
    """Training and validation samples of one device.

    Attributes:
        train_x: float32 [N, ...].
        train_y: int64 [N].
        validation_x: float32 [M, ...]; M may be 0.
        validation_y: int64 [M].
    """

    train_x: Inputs
    train_y: Labels
    validation_x: Inputs
    validation_y: Labels


def split_samples(x: Inputs, y: Labels, *, fraction: float = VALIDATION_FRACTION) -> SplitSamples:
    """Split by the BLAKE2b hash of each sample's bytes.

    Args:
        x: float32 [N, ...].
        y: int64 [N].
        fraction: Expected share of validation, 0 to below 1.

    Returns:
        Both parts, each in the order given. With two or more samples and a positive fraction neither is empty: the
        sample with the lowest or the highest hash moves over if it must.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction must be 0 to below 1, got {fraction}")
    rows = np.ascontiguousarray(x)
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") for row in rows],
        dtype=np.uint64,
    )
    held = hashes < np.uint64(int(fraction * (1 << 64)))
    if len(hashes) >= 2 and fraction > 0.0:
        if not held.any():
            held[int(hashes.argmin())] = True
        elif held.all():
            held[int(hashes.argmax())] = False
    return SplitSamples(x[~held], y[~held], x[held], y[held])
