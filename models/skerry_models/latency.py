"""How long one row takes on this machine: a figure of the machine, never part of a bundle.

Other load on the machine only ever adds time, and a gate must judge the model, not what else the machine was doing:
calls are timed in blocks and the quietest block counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from skerry_models.runtime import open_session
from skerry_models.task import Float32


@dataclass(frozen=True)
class Latency:
    """Time of one ``run`` with one row on one thread.

    Attributes:
        p50_us: Median, microseconds.
        p99_us: 99th percentile, microseconds.
    """

    p50_us: float
    p99_us: float


#: Blocks that are timed whatever they take.
_FEWEST_BLOCKS = 2


def measure_latency(
    model: bytes, row: Float32, *, blocks: int = 15, runs: int = 100, warm_up: int = 30, seconds: float = 1.0
) -> Latency:
    """Time an inference graph; the figures are those of the block with the lowest p99.

    Args:
        model: ONNX bytes.
        row: float32 [1, *input].
        blocks: How many blocks are timed.
        runs: Calls of a block.
        warm_up: Calls before, not timed.
        seconds: No further block begins after so long.

    Raises:
        BundleError: The graph does not load.
    """
    session = open_session(model)
    feed = {"input": np.ascontiguousarray(row)}
    for _ in range(warm_up):
        session.run(None, feed)
    timed: list[Latency] = []
    until = time.perf_counter() + seconds
    while len(timed) < blocks and (len(timed) < _FEWEST_BLOCKS or time.perf_counter() < until):
        times = np.empty(runs)
        for index in range(runs):
            start = time.perf_counter_ns()
            session.run(None, feed)
            times[index] = time.perf_counter_ns() - start
        p50, p99 = np.percentile(times / 1000.0, (50, 99))
        timed.append(Latency(float(p50), float(p99)))
    return min(timed, key=lambda block: block.p99_us)
