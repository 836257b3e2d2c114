"""A release that answers with this device's own parameters: made here, held to what the release itself must do.

The training process leaves a form and its proof (:mod:`skerry_agent.training.personal_forms`). Before the form answers,
``evaluate.onnx`` is bound to the release's own parameters in the same way and must reproduce the release's golden
outputs: that shows that the way of making it is right on this device. Then it is bound to the device's parameters; its
scores must be finite, and its drift features those of the golden set, since no parameter of a device is in them.

Invariants: the release is loaded and checked first, and answers on any doubt; a release on probation is judged as it
was signed, so only a committed one has a personal form; nothing here changes the slot or the form.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from skerry_agent.config import AgentLayout
from skerry_agent.engine.backend import Backend, ModelSource, Runner
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.golden import Golden, check_golden
from skerry_agent.engine.loader import ExtraCandidate, LoadedRelease
from skerry_agent.engine.model import ModelSpec
from skerry_agent.engine.slot_files import GOLDEN, read_golden, read_verified
from skerry_agent.errors import AgentError, ArtifactError
from skerry_agent.files import write_atomically
from skerry_agent.training.personal_forms import CheckedForm, FormRefusedError, check_form, form_path, read_form
from skerry_agent.update.slots import SlotContent, read_pointer
from skerry_contract.errors import WireError
from skerry_contract.onnx_binding import bind, bound_names
from skerry_contract.tensors import Array, decode_bundle
from skerry_contract.v1.release_pb2 import Variant

_log = logging.getLogger(__name__)

#: Name of the form at the doors, in metrics and in what the device reports.
PERSONAL = "personal"
#: The form of the release that it is made like and held to.
REFERENCE = "fp32"
EVALUATE = "evaluate.onnx"
PARAMETERS = "parameters.pb"
#: The runtime that it is tried on: every device has it.
RUNTIME = "onnxruntime"
#: Runs that tell how long one row takes, after as many that do not count.
TIMED_RUNS = 20


@dataclass(frozen=True)
class PersonalStatus:
    """Whether the device's own parameters answer.

    Attributes:
        state: "none" (there are none for this release), "off" (the configuration forbids it), "refused", "answers".
        detail: Why they are refused; empty otherwise.
        release_id: Release that this is about; empty if there is none.
        examples: Validation samples of the proof; 0 without one.
        global_accuracy: Share of them that the release gets right as it was signed, 0 to 1.
        personal_accuracy: With the own parameters.
    """

    state: str = "none"
    detail: str = ""
    release_id: str = ""
    examples: int = 0
    global_accuracy: float = 0.0
    personal_accuracy: float = 0.0


@dataclass(frozen=True)
class PreparedForm:
    """What was found for a slot.

    Attributes:
        content: The slot.
        seen: What was looked at; another signature means another form.
        candidates: The form, or nothing.
        status: What becomes of it.
    """

    content: SlotContent
    seen: object
    candidates: tuple[ExtraCandidate, ...]
    status: PersonalStatus


class PersonalSource:
    """Makes the personal form of a release. One thread at a time."""

    def __init__(
        self, layout: AgentLayout, backends: Mapping[str, Backend], *, enabled: bool, publish: bool = False
    ) -> None:
        """Nothing is read yet.

        Args:
            layout: The data directory.
            backends: Inference runtimes by name.
            enabled: Whether own parameters may answer.
            publish: Whether to write the status to ``layout.personal_file``: in the serving process.
        """
        self._layout = layout
        self._backends = backends
        self._enabled = enabled
        self._publish = publish
        self._now: PreparedForm | None = None

    @property
    def status(self) -> PersonalStatus:
        """Of the release that was loaded last."""
        if self._now is None:
            return PersonalStatus("none" if self._enabled else "off")
        return self._now.status

    def prepare(self, content: SlotContent) -> PreparedForm:
        """The personal form of a slot, if it may answer; never raises for what is wrong with it."""
        seen, release_id = self._signature(content), content.manifest.release_id
        if not self._enabled:
            return PreparedForm(content, seen, (), PersonalStatus("off", release_id=release_id))
        try:
            form = read_form(self._layout.personal_forms, content.manifest.bundle_sha256)
            if form is None:
                return PreparedForm(content, seen, (), PersonalStatus("none", release_id=release_id))
            if not self._committed(content):
                raise FormRefusedError("the release is on probation and answers as it was signed")
            state = decode_bundle(read_verified(content, PARAMETERS))
            checked = check_form(form, content.manifest, state)
            candidate = self._prove(content, checked, state)
        except (AgentError, WireError, OSError) as error:
            status = PersonalStatus("refused", _reason(error), release_id)
            _log.warning("release %s: the personal form is refused: %s", release_id, status.detail)
            return PreparedForm(content, seen, (), status)
        proof = checked.proof
        accuracies = proof.examples, proof.global_accuracy, proof.personal_accuracy
        return PreparedForm(content, seen, (candidate,), PersonalStatus("answers", "", release_id, *accuracies))

    def loaded(self, prepared: PreparedForm, release: LoadedRelease) -> None:
        """``release`` was loaded with what was prepared and answers from now on."""
        if prepared.candidates and release.model.variant != PERSONAL:
            status = replace(prepared.status, state="refused", detail="no runtime takes it")
            prepared = replace(prepared, status=status)
        self._now = prepared
        if self._publish:
            try:
                write_atomically(self._layout.personal_file, json.dumps(asdict(self.status)).encode())
            except OSError as error:
                _log.warning("%s cannot be written: %s", self._layout.personal_file, error)

    def settle(self) -> None:
        """Loading again has failed and would fail again: wait for the next change."""
        if self._now is not None:
            self._now = replace(self._now, seen=self._signature(self._now.content))

    def changed(self) -> bool:
        """Whether the form of the release that was loaded last is another now, or may be used now: load it again."""
        now = self._now
        return self._enabled and now is not None and self._signature(now.content) != now.seen

    def _signature(self, content: SlotContent) -> object:
        """What says that a form has been looked at: its file, and whether it may answer."""
        try:
            found = form_path(self._layout.personal_forms, content.manifest.bundle_sha256).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, self._committed(content)

    def _committed(self, content: SlotContent) -> bool:
        try:
            pointer = read_pointer(self._layout)
        except (ArtifactError, OSError):
            return False
        return pointer is not None and pointer.slot == content.slot and pointer.committed

    def _prove(self, content: SlotContent, form: CheckedForm, state: Mapping[str, Array]) -> ExtraCandidate:
        spec = ModelSpec.from_manifest(content.manifest)
        reference = _reference(content)
        evaluate, infer = read_verified(content, EVALUATE), read_verified(content, reference.path)
        without = sorted(form.own.keys() - bound_names(evaluate, data_input=spec.input.name))
        if len(without) == len(form.own):
            raise FormRefusedError(f"no parameter of it has a place in {EVALUATE}, such as {without[0][:80]}")
        golden = read_golden(content, spec, reference.golden or GOLDEN)

        def bound(parameters: Mapping[str, Array]) -> bytes:
            return bind(evaluate, infer, parameters, data_input=spec.input.name, features=spec.features.name)

        runner = self._load(bound(state), spec)
        try:
            verdict = check_golden(
                runner.run,
                golden,
                variant=REFERENCE,
                outputs=(spec.scores.name, spec.features.name),
                tolerance=reference.golden_tolerance,
                maximum_batch=spec.maximum_batch,
            )
        finally:
            runner.close()
        if not verdict.passed:
            raise FormRefusedError(f"with the release's own parameters, made in the same way: {verdict.detail}")
        onnx = bound({**state, **form.own})
        runner = self._load(onnx, spec)
        try:
            outputs = _golden_of(runner, golden, spec)
            latencies = _latencies_us(runner, golden)
        finally:
            runner.close()
        return ExtraCandidate(
            PERSONAL,
            onnx,
            outputs,
            reference.golden_tolerance,
            latency_us=statistics.median(latencies),
            p99_us=max(latencies),
        )

    def _load(self, onnx: bytes, spec: ModelSpec) -> Runner:
        backend = self._backends.get(RUNTIME)
        if backend is None or not backend.probe().available:
            raise FormRefusedError(f"{RUNTIME} is not here to try it on")
        source = ModelSource(
            onnx=onnx,
            sha256=hashlib.sha256(onnx).digest(),
            input=spec.input,
            outputs=(spec.scores, spec.features),
            maximum_batch=spec.maximum_batch,
        )
        return backend.load(backend.build(source, self._layout.personal_forms))


def _reference(content: SlotContent) -> Variant:
    for variant in content.manifest.variants:
        if variant.name == REFERENCE and variant.rung == 0:
            return variant
    raise FormRefusedError(f"the release has no {REFERENCE} form")


def _golden_of(runner: Runner, golden: Golden, spec: ModelSpec) -> Golden:
    """What the form has to reproduce wherever it is loaded: its own scores, and the features of the release."""
    scores = np.concatenate([runner.run(golden.x[row : row + 1])[0] for row in range(len(golden.x))])
    if not np.isfinite(scores).all():
        raise FormRefusedError("its scores are not finite")
    features = golden.outputs[REFERENCE][spec.features.name]
    return Golden(golden.x, {PERSONAL: {spec.scores.name: scores, spec.features.name: features}})


def _latencies_us(runner: Runner, golden: Golden) -> list[float]:
    x = np.ascontiguousarray(golden.x[:1])
    taken: list[float] = []
    for _ in range(2 * TIMED_RUNS):
        started = time.perf_counter()
        runner.run(x)
        taken.append((time.perf_counter() - started) * 1e6)
    return taken[TIMED_RUNS:]


def _reason(error: Exception) -> str:
    if isinstance(error, FormRefusedError | ArtifactError):
        return error.reason
    if isinstance(error, BackendError):
        return f"the runtime refuses it: {error}"
    return str(error)
