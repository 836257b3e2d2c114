"""Which variant of a network answers on this device: the fastest that is right, and never a slower one than fp32.

INT8 is not faster everywhere (a canonical S8S8 graph can be three times slower than fp32 on a processor without the
right instructions), so the device measures. Measuring and deciding are apart: :func:`decide` is pure. A time budget
bounds the measuring: fp32 is always measured, the others in the order in which they are given while there is time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerry_agent.engine.backend import Backend, BuiltModel, ModelSource, Probe, Runner, base_form
from skerry_agent.engine.choice import Measurement
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.golden import Golden, check_golden
from skerry_agent.errors import ArtifactError

_log = logging.getLogger(__name__)

#: The form that the others are held to.
REFERENCE = "fp32"
WARM_UP_RUNS = 10
TIMED_RUNS = 100
#: Time to load and measure in when nobody says otherwise (s). Timing ends with it even if TIMED_RUNS are not done, but
#: never before MINIMUM_RUNS.
BUDGET_SECONDS = 8.0
MINIMUM_RUNS = 5
#: Share of the budget after which no further candidate is loaded.
LOADING_SHARE = 0.5
#: After so many timed runs a candidate whose best run is HOPELESS times the best median is not run any more.
JUDGED_RUNS = 20
HOPELESS = 1.5
#: A variant that does not beat fp32 by this share of its time is not worth what quantisation costs in accuracy, and
#: timing is not sharper than that: without it the choice of two equally fast variants would be a coin toss.
MARGIN = 0.02
#: A form that is kept for faster starts may cost this factor of a run's time, which is what timing can tell apart.
KEPT_SLACK = 1.1
#: How long a kept form is compared with the file that it was made of (s).
KEPT_SECONDS = 2.0


@dataclass(frozen=True)
class Candidate:
    """A variant on a backend, not yet tried.

    Attributes:
        variant: Name of the variant.
        backend: Name of the backend.
        tolerance: Largest difference from the golden outputs, >= 0.
        source: The graph.
        rung: Place of its network on the ladder.
    """

    variant: str
    backend: str
    tolerance: float
    source: ModelSource
    rung: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Variant and backend."""
        return self.variant, self.backend

    @property
    def is_reference(self) -> bool:
        """Whether the others are held to it."""
        return base_form(self.variant) == REFERENCE


@dataclass(frozen=True)
class Loaded:
    """A candidate that loaded and passed its golden check.

    Attributes:
        runner: The model.
        worst: Largest difference from the golden outputs.
        load_us: Time from the verified file to the runner, the golden check not counted.
    """

    runner: Runner
    worst: float
    load_us: float


def decide(measurements: Sequence[Measurement]) -> Measurement | None:
    """The fastest correct candidate by median; fp32 unless another is faster by :data:`MARGIN`.

    Among equals the lower 99th percentile wins. None if no candidate is correct.
    """

    def cost(measurement: Measurement) -> tuple[float, float, str, str]:
        handicap = 1 - MARGIN if base_form(measurement.variant) == REFERENCE else 1.0
        return measurement.median_us * handicap, measurement.p99_us, measurement.variant, measurement.backend

    correct = [m for m in measurements if m.correct and math.isfinite(m.median_us)]
    return min(correct, key=cost, default=None)


def choose(
    release_id: str,
    candidates: Sequence[Candidate],
    *,
    backends: Mapping[str, Backend],
    golden: Golden,
    cache: Path,
    budget_s: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Measurement, list[Measurement], Runner]:
    """Try every candidate of one network on this device.

    Args:
        release_id: For errors.
        candidates: What may run here.
        backends: By name.
        golden: What a correct candidate reproduces.
        cache: Folder for built engines.
        budget_s: How long it may take (s), but for loading fp32 and MINIMUM_RUNS.
        clock: Seconds.

    Returns:
        The chosen measurement, all of them in the order of the candidates, and the loaded runner of the chosen one.

    Raises:
        ArtifactError: No candidate is correct; says why for each.
    """
    started = clock()
    loaded: dict[tuple[str, str], Loaded] = {}
    refused: dict[tuple[str, str], str] = {}
    skipped: set[tuple[str, str]] = set()
    try:
        for candidate in sorted(candidates, key=lambda c: not c.is_reference):
            if loaded and not candidate.is_reference and clock() - started > budget_s * LOADING_SHARE:
                skipped.add(candidate.key)
                refused[candidate.key] = f"not tried: the time budget of {budget_s:g} s did not reach so far"
                continue
            try:
                loaded[candidate.key] = load_candidate(
                    candidate, backends[candidate.backend], golden=golden, cache=cache, clock=clock
                )
            except BackendError as error:
                refused[candidate.key] = str(error)
                _log.warning("release %s: %s on %s: %s", release_id, *candidate.key, error)
        references = {c.key for c in candidates if c.is_reference}
        timings = _time_interleaved(loaded, references, golden, started + budget_s, clock)
        measurements = [
            _measurement(
                candidate,
                loaded.get(candidate.key),
                timings.get(candidate.key, []),
                refused.get(candidate.key, ""),
                tried=candidate.key not in skipped,
            )
            for candidate in candidates
        ]
        chosen = decide(measurements)
        if chosen is None:
            reasons = "; ".join(f"{m.variant}: {m.detail}" for m in measurements) or "no variant is allowed here"
            raise ArtifactError(release_id, f"no variant can be used: {reasons}")
        return chosen, measurements, loaded.pop((chosen.variant, chosen.backend)).runner
    finally:
        for entry in loaded.values():
            entry.runner.close()


def load_candidate(
    candidate: Candidate,
    backend: Backend,
    *,
    golden: Golden,
    cache: Path,
    clock: Callable[[], float] = time.perf_counter,
) -> Loaded:
    """Build, load and check one candidate. What the cache holds is deleted at any doubt, and the signed file used.

    Raises:
        BackendError: The backend refuses it, or its outputs are not the golden ones.
    """
    started = clock()
    built = backend.build(candidate.source, cache)
    try:
        return _load_and_check(candidate, backend, built, golden, started, clock)
    except BackendError as error:
        if built.kept is None:
            raise
        _log.warning("%s is deleted: %s", built.kept.name, error)
        built.kept.unlink(missing_ok=True)
        if built.fresh:
            raise
    started = clock()
    built = backend.build(candidate.source, cache)
    try:
        return _load_and_check(candidate, backend, built, golden, started, clock)
    except BackendError:
        if built.kept is not None:
            built.kept.unlink(missing_ok=True)
        raise


def keep_if_it_pays(candidate: Candidate, backend: Backend, *, golden: Golden, cache: Path) -> bool:
    """Have the backend keep a form that loads faster, and delete it again unless it is right and not slower.

    Args:
        candidate: The chosen one.
        backend: Its backend.
        golden: What it reproduces.
        cache: Folder for what is kept.

    Returns:
        Whether something is kept.
    """
    loaded: dict[tuple[str, str], Loaded] = {}
    plain, faster = ("plain", backend.name), ("kept", backend.name)
    try:
        loaded[plain] = load_candidate(candidate, backend, golden=golden, cache=cache)
        built = backend.build(candidate.source, cache)
        if built.kept is not None and not built.fresh:
            return True  # from an earlier proof of this slot, and it has just passed the golden check
        if not backend.keep(candidate.source, cache):
            return False
        built = backend.build(candidate.source, cache)
        if built.kept is None or built.fresh:
            return False
        loaded[faster] = load_candidate(candidate, backend, golden=golden, cache=cache)
        deadline = time.perf_counter() + KEPT_SECONDS
        timings = _time_interleaved(loaded, set(loaded), golden, deadline, time.perf_counter)
    except (BackendError, OSError) as error:
        _log.warning("%s on %s: nothing is kept for the next start: %s", *candidate.key, error)
        return False
    finally:
        for entry in loaded.values():
            entry.runner.close()
    medians = {key: float(np.median(timings[key])) for key in loaded}
    pays = loaded[faster].load_us < loaded[plain].load_us and medians[faster] <= medians[plain] * KEPT_SLACK
    if not (pays and built.kept.exists()):
        _log.info("%s on %s: the kept form does not pay", *candidate.key)
        built.kept.unlink(missing_ok=True)
        return False
    return True


def present_backends(backends: Mapping[str, Backend]) -> dict[str, Probe]:
    """Name to probe of every backend that is available on this machine."""
    probes = {name: backend.probe() for name, backend in backends.items()}
    return {name: probe for name, probe in probes.items() if probe.available}


def _load_and_check(
    candidate: Candidate,
    backend: Backend,
    built: BuiltModel,
    golden: Golden,
    started: float,
    clock: Callable[[], float],
) -> Loaded:
    runner = backend.load(built)
    load_us = (clock() - started) * 1e6
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
    return Loaded(runner, verdict.worst, load_us)


def _measurement(
    candidate: Candidate, loaded: Loaded | None, timings: Sequence[float], detail: str, *, tried: bool
) -> Measurement:
    median = p99 = math.inf
    if timings:
        median, p99 = (float(value) for value in np.percentile(timings, (50, 99)))
    return Measurement(
        *candidate.key,
        correct=loaded is not None,
        median_us=median,
        p99_us=p99,
        worst=math.inf if loaded is None else loaded.worst,
        detail=detail,
        rung=candidate.rung,
        size=len(candidate.source.onnx),
        load_us=math.inf if loaded is None else loaded.load_us,
        tried=tried,
    )


def _time_interleaved(
    loaded: Mapping[tuple[str, str], Loaded],
    references: set[tuple[str, str]],
    golden: Golden,
    deadline: float,
    clock: Callable[[], float],
) -> dict[tuple[str, str], list[float]]:
    """Microseconds per run of one row, the candidates taking turns so that a busy machine hurts all alike."""
    x = np.ascontiguousarray(golden.x[:1])
    timings: dict[tuple[str, str], list[float]] = {key: [] for key in loaded}
    running = dict(loaded)
    for turn in range(WARM_UP_RUNS + TIMED_RUNS):
        for key, entry in running.items():
            started = clock()
            entry.runner.run(x)
            elapsed = (clock() - started) * 1e6
            if turn >= WARM_UP_RUNS or clock() > deadline:
                timings[key].append(elapsed)
        if clock() > deadline and all(len(taken) >= MINIMUM_RUNS for taken in timings.values()):
            break
        if turn == WARM_UP_RUNS + JUDGED_RUNS - 1:
            best = min((float(np.median(taken)) for taken in timings.values()), default=0.0)
            running = {
                key: entry
                for key, entry in running.items()
                if key in references or min(timings[key]) <= best * HOPELESS
            }
    return timings
