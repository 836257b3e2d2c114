"""Which variant of a release answers on this device: the fastest that is right, and never a slower one than fp32.

INT8 is not faster everywhere (a canonical S8S8 graph can be three times slower than fp32 on a processor without the
right instructions), so the device measures. Measuring and deciding are apart: :func:`decide` is pure.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerry_agent.engine.backend import Backend, ModelSource, Probe, Runner
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.golden import Golden, check_golden
from skerry_agent.errors import ArtifactError

_log = logging.getLogger(__name__)

#: The variant that the others are held to.
REFERENCE = "fp32"
WARM_UP_RUNS = 10
TIMED_RUNS = 100
#: Timing ends after so long even if TIMED_RUNS are not done (s), but never before MINIMUM_RUNS.
TIMING_SECONDS = 8.0
MINIMUM_RUNS = 5
#: A variant that does not beat fp32 by this share of its time is not worth what quantisation costs in accuracy, and
#: timing is not sharper than that: without it the choice of two equally fast variants would be a coin toss.
MARGIN = 0.02


@dataclass(frozen=True)
class Candidate:
    """A variant on a backend, not yet tried.

    Attributes:
        variant: Name of the variant.
        backend: Name of the backend.
        tolerance: Largest difference from the golden outputs, >= 0.
        source: The graph.
    """

    variant: str
    backend: str
    tolerance: float
    source: ModelSource


@dataclass(frozen=True)
class Measurement:
    """What was found out about a candidate.

    Attributes:
        variant: Name of the variant.
        backend: Name of the backend.
        correct: Whether it loaded and passed the golden check.
        median_us: Median latency of one row; infinity if it is not correct.
        p99_us: 99th percentile.
        worst: Largest difference from the golden outputs.
        detail: Why it is not correct; empty otherwise.
    """

    variant: str
    backend: str
    correct: bool
    median_us: float
    p99_us: float
    worst: float
    detail: str


def decide(measurements: Sequence[Measurement]) -> Measurement | None:
    """The fastest correct candidate by median; fp32 unless another is faster by :data:`MARGIN`.

    Among equals the lower 99th percentile wins. None if no candidate is correct.
    """

    def cost(measurement: Measurement) -> tuple[float, float, str]:
        handicap = 1 - MARGIN if measurement.variant == REFERENCE else 1.0
        return measurement.median_us * handicap, measurement.p99_us, measurement.variant

    correct = [m for m in measurements if m.correct and math.isfinite(m.median_us)]
    return min(correct, key=cost, default=None)


def choose(
    release_id: str,
    candidates: Sequence[Candidate],
    *,
    backends: Mapping[str, Backend],
    golden: Golden,
    cache: Path,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Measurement, list[Measurement], Runner]:
    """Try every candidate on this device.

    Args:
        release_id: For errors.
        candidates: What may run here.
        backends: By name.
        golden: What a correct candidate reproduces.
        cache: Folder for built engines.
        clock: Seconds.

    Returns:
        The chosen measurement, all of them, and the loaded runner of the chosen one.

    Raises:
        ArtifactError: No candidate is correct; says why for each.
    """
    runners: dict[tuple[str, str], Runner] = {}
    refused: dict[tuple[str, str], Measurement] = {}
    worst: dict[tuple[str, str], float] = {}
    try:
        for candidate in candidates:
            key = (candidate.variant, candidate.backend)
            try:
                runner, difference = load_candidate(candidate, backends[candidate.backend], golden=golden, cache=cache)
            except BackendError as error:
                refused[key] = Measurement(*key, False, math.inf, math.inf, math.inf, str(error))
                _log.warning("release %s: %s on %s: %s", release_id, *key, error)
                continue
            runners[key], worst[key] = runner, difference
        timings = _time_interleaved(runners, golden, clock)
        measurements = []
        for candidate in candidates:
            key = (candidate.variant, candidate.backend)
            if key in refused:
                measurements.append(refused[key])
                continue
            median, p99 = (float(value) for value in np.percentile(timings[key], (50, 99)))
            measurements.append(Measurement(*key, True, median, p99, worst[key], ""))
        chosen = decide(measurements)
        if chosen is None:
            reasons = "; ".join(f"{m.variant}: {m.detail}" for m in measurements) or "no variant is allowed here"
            raise ArtifactError(release_id, f"no variant can be used: {reasons}")
        return chosen, measurements, runners.pop((chosen.variant, chosen.backend))
    finally:
        for runner in runners.values():
            runner.close()


def load_candidate(candidate: Candidate, backend: Backend, *, golden: Golden, cache: Path) -> tuple[Runner, float]:
    """Build, load and check one candidate; returns its runner and the largest difference from the golden outputs.

    Raises:
        BackendError: The backend refuses it, or its outputs are not the golden ones.
    """
    runner = backend.load(backend.build(candidate.source, cache))
    try:
        verdict = check_golden(
            runner.run,
            golden,
            variant=candidate.variant,
            outputs=tuple(port.name for port in candidate.source.outputs),
            tolerance=candidate.tolerance,
            maximum_batch=candidate.source.maximum_batch,
        )
        if not verdict.passed:
            raise BackendError(backend.name, "prove", verdict.detail)
    except BaseException:
        runner.close()
        raise
    return runner, verdict.worst


def present_backends(backends: Mapping[str, Backend]) -> dict[str, Probe]:
    """Name to probe of every backend that is available on this machine."""
    probes = {name: backend.probe() for name, backend in backends.items()}
    return {name: probe for name, probe in probes.items() if probe.available}


def _time_interleaved(
    runners: Mapping[tuple[str, str], Runner], golden: Golden, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Microseconds per run of one row, the candidates taking turns so that a busy machine hurts all alike."""
    x = np.ascontiguousarray(golden.x[:1])
    timings: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    deadline = clock() + TIMING_SECONDS
    for turn in range(WARM_UP_RUNS + TIMED_RUNS):
        for key, runner in runners.items():
            started = clock()
            runner.run(x)
            elapsed = (clock() - started) * 1e6
            if turn >= WARM_UP_RUNS or clock() > deadline:
                timings[key].append(elapsed)
        if clock() > deadline and all(len(taken) >= MINIMUM_RUNS for taken in timings.values()):
            break
    return timings
