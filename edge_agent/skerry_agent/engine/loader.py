"""From a slot with a verified manifest to a release that can answer: one model per rung of its ladder.

Everything that runs was read from the slot, held to the signed manifest, and passed its golden check in this process.
The release's own network (rung 0) must be usable, or the release is refused; a smaller one that is not is left out.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerry_agent.engine.backend import Backend, ModelSource, Probe, Runner
from skerry_agent.engine.choice import Choice, Choices, Measurement, read_choices, write_choices
from skerry_agent.engine.chooser import (
    BUDGET_SECONDS,
    Candidate,
    choose,
    keep_if_it_pays,
    load_candidate,
    present_backends,
)
from skerry_agent.engine.device_profile import this_hardware
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.golden import Golden
from skerry_agent.engine.model import Model, ModelSpec
from skerry_agent.engine.slot_files import GOLDEN, read_edges, read_golden, read_verified
from skerry_agent.errors import ArtifactError
from skerry_agent.update.slots import SlotContent, SlotName
from skerry_contract.v1.release_pb2 import Variant
from skerry_contract.v1.telemetry_pb2 import HistogramEdges

_log = logging.getLogger(__name__)

#: Folder in a slot for what backends keep: engines, faster forms. It may be deleted at any time.
CACHE = ".engines"


@dataclass(frozen=True)
class ExtraCandidate:
    """A model that was made on this device out of a verified release: it goes before the release's own forms.

    It takes the place of the chosen form of its rung if it loads and reproduces its golden outputs; else the chosen
    form answers. Whoever makes it has proven that it may.

    Attributes:
        name: Name of the form, such as "personal".
        onnx: The graph.
        golden: What it reproduces: outputs under ``name``.
        tolerance: Largest difference that counts as equal, >= 0.
        rung: Whose place it takes.
        latency_us: Median latency of one row, measured by whoever made it.
        p99_us: 99th percentile.
    """

    name: str
    onnx: bytes
    golden: Golden
    tolerance: float
    rung: int = 0
    latency_us: float = math.inf
    p99_us: float = math.inf


@dataclass(frozen=True)
class LoadedRelease:
    """A release that passed its golden checks here.

    Attributes:
        slot: Slot that it came from.
        models: One model per rung that can be served here, ascending; the first is the release's own network.
        edges: Edges of the drift histograms.
        edges_sha256: Digest of drift_edges.pb.
        choices: The variant of each model and its measured latency, in the same order.
        incomplete: Whether a runtime that compiles for long was not asked yet: see ``background_build``.
    """

    slot: SlotName
    models: tuple[Model, ...]
    edges: HistogramEdges
    edges_sha256: bytes
    choices: tuple[Choice, ...]
    incomplete: bool = False

    @property
    def model(self) -> Model:
        """The release's own network."""
        return self.models[0]

    @property
    def choice(self) -> Choice:
        """Choice of the release's own network."""
        return self.choices[0]

    def close(self) -> None:
        """Free every model. The caller makes sure that nobody uses them."""
        for model in self.models:
            model.close()


def load_release(
    content: SlotContent,
    *,
    backends: Mapping[str, Backend],
    device_class: str,
    extra: Sequence[ExtraCandidate] = (),
    budget_s: float = BUDGET_SECONDS,
) -> LoadedRelease:
    """Load the chosen variant of every rung of a slot; measure and choose first if no choices are kept.

    Args:
        content: The slot.
        backends: Inference runtimes by name.
        device_class: Which variants may run.
        extra: Models that were made on this device.
        budget_s: How long measuring may take (s).

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    session = _Session(content, backends, device_class)
    edges, edges_sha256 = read_edges(content, session.spec)
    kept = session.kept_choices()
    runners = None if kept is None else session.load(kept)
    if kept is None or runners is None:
        kept, runners = session.measure(budget_s, compile_too=False)
        keep_choices(content, kept)
    choices = list(kept.choices)
    models = [
        Model(session.spec, runner, variant=choice.variant, backend=choice.backend)
        for choice, runner in zip(choices, runners, strict=True)
    ]
    for candidate in extra:
        session.put_before(candidate, choices, models)
    return LoadedRelease(content.slot, tuple(models), edges, edges_sha256, tuple(choices), not kept.complete)


def measure_release(
    content: SlotContent,
    *,
    backends: Mapping[str, Backend],
    device_class: str,
    budget_s: float = BUDGET_SECONDS,
    keep: bool = True,
) -> Choices:
    """Try every variant that may run here.

    Args:
        content: The slot.
        backends: Inference runtimes by name.
        device_class: Which variants may run.
        budget_s: How long measuring may take (s).
        keep: Have backends keep faster-loading forms of what is chosen.

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    session = _Session(content, backends, device_class)
    read_edges(content, session.spec)
    choices, runners = session.measure(budget_s, compile_too=True)
    for runner in runners:
        runner.close()
    if keep:
        session.keep_faster_forms(choices)
    return choices


def keep_choices(content: SlotContent, choices: Choices) -> None:
    """Write choice.json; a full disk only costs the next start its head start."""
    try:
        write_choices(content.folder, choices)
    except OSError as error:
        _log.warning("release %s: the choice cannot be kept: %s", content.manifest.release_id, error)


class _Session:
    """What loading and measuring one slot share: each golden file is read once, backends are probed once."""

    def __init__(self, content: SlotContent, backends: Mapping[str, Backend], device_class: str) -> None:
        self.spec = ModelSpec.from_manifest(content.manifest)
        self._content = content
        self._backends = backends
        self._device_class = device_class
        self._probes: dict[str, Probe] = present_backends(backends)
        self._hardware = this_hardware()
        self._golden: dict[str, Golden] = {}
        self._cache = content.folder / CACHE

    def kept_choices(self) -> Choices | None:
        """The kept choices, if they were made for this bundle, this machine and these runtimes."""
        kept = read_choices(self._content.folder)
        if kept is None or kept.hardware != self._hardware or kept.choices[0].rung != 0:
            return None
        same_bundle = kept.bundle_sha256 == self._content.manifest.bundle_sha256.hex()
        return kept if same_bundle and all(self._holds(choice) for choice in kept.choices) else None

    def load(self, kept: Choices) -> list[Runner] | None:
        """A runner per kept choice, or None if one is refused and everything has to be measured again."""
        runners: list[Runner] = []
        for choice in kept.choices:
            candidate = self._candidate(self._variant(choice), choice.backend)
            try:
                golden = self._golden_of(self._variant(choice))
                backend = self._backends[choice.backend]
                runners.append(load_candidate(candidate, backend, golden=golden, cache=self._cache).runner)
            except BackendError as error:
                _log.warning("release %s: the kept choice is refused: %s", self.spec.release_id, error)
                for runner in runners:
                    runner.close()
                return None
        return runners

    def measure(self, budget_s: float, *, compile_too: bool) -> tuple[Choices, list[Runner]]:
        """Measure rung by rung, each within its share of what is left of the budget.

        Args:
            budget_s: How long it may take (s).
            compile_too: Whether to ask runtimes that compile for long, if there are others.
        """
        quick = {name: probe for name, probe in self._probes.items() if not self._backends[name].compiles}
        complete = compile_too or not quick or len(quick) == len(self._probes)
        if not complete:
            self._probes = quick
        rungs = sorted({variant.rung for variant in self._content.manifest.variants})
        choices: list[Choice] = []
        measurements: list[Measurement] = []
        runners: list[Runner] = []
        ends = time.perf_counter() + budget_s
        try:
            for index, rung in enumerate(rungs):
                share = max(0.0, ends - time.perf_counter()) / (len(rungs) - index)
                try:
                    chosen, found, runner = self._measure_rung(rung, share)
                except ArtifactError as error:
                    if rung == 0:
                        raise
                    _log.warning("rung %d is left out: %s", rung, error)
                    continue
                runners.append(runner)
                measurements += found
                choices.append(
                    Choice(
                        variant=chosen.variant,
                        backend=chosen.backend,
                        backend_version=self._probes[chosen.backend].version,
                        latency_us=chosen.median_us,
                        p99_us=chosen.p99_us,
                        rung=rung,
                    )
                )
            if not choices or choices[0].rung != 0:
                raise ArtifactError(self.spec.release_id, "the release has no network of its own (rung 0)")
        except BaseException:
            for runner in runners:
                runner.close()
            raise
        bundle = self._content.manifest.bundle_sha256.hex()
        kept = Choices(
            bundle, self._hardware, time.time_ns() // 1_000_000, tuple(choices), tuple(measurements), complete
        )
        return kept, runners

    def keep_faster_forms(self, choices: Choices) -> None:
        """Have the backends keep what makes the next start of the chosen forms faster."""
        for choice in choices.choices:
            variant = self._variant(choice)
            keep_if_it_pays(
                self._candidate(variant, choice.backend),
                self._backends[choice.backend],
                golden=self._golden_of(variant),
                cache=self._cache,
            )

    def put_before(self, extra: ExtraCandidate, choices: list[Choice], models: list[Model]) -> None:
        """Let a model that was made here take the place of its rung's, if it is right."""
        index = next((i for i, choice in enumerate(choices) if choice.rung == extra.rung), None)
        if index is None:
            return
        for name in self._probes:
            backend = self._backends[name]
            if not backend.accepts("fp32"):
                continue
            candidate = Candidate(extra.name, name, extra.tolerance, self._source(extra.onnx), extra.rung)
            try:
                loaded = load_candidate(candidate, backend, golden=extra.golden, cache=self._cache)
            except BackendError as error:
                _log.warning("release %s: %s on %s is refused: %s", self.spec.release_id, extra.name, name, error)
                continue
            models[index].close()
            models[index] = Model(self.spec, loaded.runner, variant=extra.name, backend=name)
            choices[index] = Choice(
                extra.name,
                name,
                self._probes[name].version,
                extra.latency_us if math.isfinite(extra.latency_us) else choices[index].latency_us,
                extra.p99_us if math.isfinite(extra.p99_us) else choices[index].p99_us,
                extra.rung,
            )
            return

    def _measure_rung(self, rung: int, budget_s: float) -> tuple[Measurement, list[Measurement], Runner]:
        variants = [v for v in self._content.manifest.variants if v.rung == rung and self._is_here(v)]
        candidates = [
            self._candidate(variant, name)
            for variant in variants
            for name in self._probes
            if self._backends[name].accepts(variant.name, variant.format)
        ]
        if not candidates:
            found = ", ".join(self._probes) or "none"
            paths = {v.path for v in self._content.manifest.variants if v.rung == rung}
            gone = sorted(path for path in paths if not self._content.path(path).exists())
            absent = f"; {', '.join(gone)} are not here" if gone else ""
            raise ArtifactError(
                self.spec.release_id,
                f"no variant for device class {self._device_class} and the backends that are here ({found}){absent}",
            )
        goldens = {variant.golden or GOLDEN for variant in variants}
        if len(goldens) != 1:
            raise ArtifactError(self.spec.release_id, f"rung {rung} has several golden files: {sorted(goldens)}")
        return choose(
            self.spec.release_id,
            candidates,
            backends=self._backends,
            golden=self._golden_of(variants[0]),
            cache=self._cache,
            budget_s=budget_s,
        )

    def _is_here(self, variant: Variant) -> bool:
        """Whether it may run here and its file was downloaded: a device may do without forms that it does not need."""
        allowed = not variant.device_classes or self._device_class in variant.device_classes
        return allowed and self._content.path(variant.path).exists()

    def _variant(self, choice: Choice) -> Variant:
        return next(v for v in self._content.manifest.variants if (v.name, v.rung) == (choice.variant, choice.rung))

    def _holds(self, choice: Choice) -> bool:
        """Whether a kept choice still can be followed."""
        probe = self._probes.get(choice.backend)
        named = (v for v in self._content.manifest.variants if (v.name, v.rung) == (choice.variant, choice.rung))
        variant = next(named, None)
        return (
            variant is not None
            and self._is_here(variant)
            and probe is not None
            and probe.version == choice.backend_version
            and self._backends[choice.backend].accepts(variant.name, variant.format)
        )

    def _golden_of(self, variant: Variant) -> Golden:
        name = variant.golden or GOLDEN
        if name not in self._golden:
            self._golden[name] = read_golden(self._content, self.spec, name)
        return self._golden[name]

    def _candidate(self, variant: Variant, backend: str) -> Candidate:
        if not (math.isfinite(variant.golden_tolerance) and variant.golden_tolerance >= 0):
            raise ArtifactError(
                self.spec.release_id, f"variant {variant.name} has tolerance {variant.golden_tolerance}"
            )
        source = self._source(read_verified(self._content, variant.path), variant.format)
        return Candidate(variant.name, backend, variant.golden_tolerance, source, variant.rung)

    def _source(self, onnx: bytes, form: str = "") -> ModelSource:
        return ModelSource(
            onnx=onnx,
            sha256=hashlib.sha256(onnx).digest(),
            input=self.spec.input,
            outputs=(self.spec.scores, self.spec.features),
            maximum_batch=self.spec.maximum_batch,
            format=form,
        )
