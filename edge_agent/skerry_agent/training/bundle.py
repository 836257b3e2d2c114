"""From a slot to a trainer that has proven itself.

Only bytes that match the signed manifest are used, the golden step must come out right, and everything is read into
memory at once: a slot may be overwritten by the next release while a round runs.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.update.slots import SlotContent, other_slot, read_pointer, read_slot
from skerry_contract.errors import ContractError
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.release_pb2 import GoldenStep, TrainStepSpec
from skerry_contract.wire import parse_message

logger = logging.getLogger(__name__)

_SPEC_BYTES = 1 << 20
_GOLDEN_BYTES = 1 << 30
#: Seconds after which a train step that failed is tried again: its slot may have been staged anew.
_RETRY_S = 60.0


class StepMissingError(ArtifactError):
    """No slot has the train step that is asked for.

    Attributes:
        code: Which of :data:`skerry_contract.campaign.STAY_OUT` that is.
    """

    def __init__(self, reason: str, *, code: str) -> None:
        self.code = code
        super().__init__("", reason)


@dataclass(frozen=True)
class TrainingBundle:
    """A trainer and where it comes from.

    Attributes:
        trainer: Proven by its golden step.
        task: Task of the release.
        train_step_sha256: Hexadecimal digest of train_step.onnx.
        release_id: Release whose files it was built from.
        calibrate: calibrate.onnx; empty for a release that has none.
    """

    trainer: OnnxTrainer
    task: str
    train_step_sha256: str
    release_id: str
    calibrate: bytes = field(default=b"", repr=False)


class TrainingBundles:
    """Builds trainers from the slots and remembers those of the last two train steps; for use by one thread."""

    def __init__(self, layout: AgentLayout, verifier: EnvelopeVerifier) -> None:
        self._layout = layout
        self._verifier = verifier
        self._ready: dict[str, TrainingBundle] = {}
        #: Train step to (reason, monotonic time until which it is believed).
        self._refused: dict[str, tuple[str, float]] = {}

    def active_digest(self) -> str:
        """Digest (hexadecimal) of the train step of the release that answers.

        Raises:
            ArtifactError: No release, a broken slot, or a release without a train step.
        """
        pointer = read_pointer(self._layout)
        if pointer is None:
            raise ArtifactError("", "no release is installed yet")
        content = read_slot(self._layout, pointer.slot, self._verifier)
        if not content.manifest.train_step_sha256:
            raise ArtifactError(content.manifest.release_id, "the release cannot be trained")
        return content.manifest.train_step_sha256.hex()

    def check_active(self) -> None:
        """Raise ArtifactError unless the release that answers can be trained and its golden step came out right."""
        self.open(self.active_digest())

    def open(self, train_step_sha256: str) -> TrainingBundle:
        """The bundle with that train step, from the active slot or the other one.

        A train step that failed is not tried again for a minute.

        Raises:
            ArtifactError: Neither slot has it, or it failed.
        """
        if bundle := self._ready.get(train_step_sha256):
            return bundle
        reason, until = self._refused.get(train_step_sha256, ("", 0.0))
        if time.monotonic() < until:
            raise ArtifactError("", reason)
        content = self._find(train_step_sha256)
        try:
            bundle = _build(content, train_step_sha256)
        except ArtifactError as error:
            reason = f"release {content.manifest.release_id}: {error.reason}"
            self._refused = {train_step_sha256: (reason, time.monotonic() + _RETRY_S)}
            raise ArtifactError(content.manifest.release_id, error.reason) from error
        logger.info("train step %s of release %s is ready", train_step_sha256[:12], content.manifest.release_id)
        if len(self._ready) >= len(("a", "b")):
            self._ready.pop(next(iter(self._ready)))
        self._ready[train_step_sha256] = bundle
        return bundle

    def _find(self, train_step_sha256: str) -> SlotContent:
        pointer = read_pointer(self._layout)
        if pointer is None:
            raise StepMissingError("no release is installed yet", code="no-release")
        have: list[str] = []
        for slot in (pointer.slot, other_slot(pointer.slot)):
            try:
                content = read_slot(self._layout, slot, self._verifier)
            except ArtifactError:
                continue
            if content.manifest.train_step_sha256.hex() == train_step_sha256:
                return content
            have.append(content.manifest.train_step_sha256.hex()[:12])
        raise StepMissingError(
            f"train step {train_step_sha256[:12]} is not installed, only {', '.join(have) or 'none'}", code="other-step"
        )


def _build(content: SlotContent, train_step_sha256: str) -> TrainingBundle:
    step_model = _read(content, "train_step.onnx")
    if hashlib.sha256(step_model).hexdigest() != train_step_sha256:
        raise ArtifactError(content.manifest.release_id, "train_step.onnx is not the one that the manifest names")
    try:
        spec = parse_message(TrainStepSpec, _read(content, "train_step.pb"), limit=_SPEC_BYTES)
        golden = parse_message(GoldenStep, _read(content, "golden_step.pb"), limit=_GOLDEN_BYTES)
        trainer = OnnxTrainer(step_model, spec, _read(content, "evaluate.onnx"))
        trainer.check_golden_step(golden)
    except ContractError as error:
        raise ArtifactError(content.manifest.release_id, str(error)) from error
    has_graph = any(item.path == "calibrate.onnx" for item in content.manifest.files)
    return TrainingBundle(
        trainer,
        content.manifest.task,
        train_step_sha256,
        content.manifest.release_id,
        _read(content, "calibrate.onnx") if has_graph else b"",
    )


def _read(content: SlotContent, name: str) -> bytes:
    """Bytes of a file, checked against the signed manifest."""
    entry = next((item for item in content.manifest.files if item.path == name), None)
    if entry is None:
        raise ArtifactError(content.manifest.release_id, f"the bundle has no file {name}")
    try:
        data = (content.folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(content.manifest.release_id, f"{name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).digest() != entry.sha256:
        raise ArtifactError(content.manifest.release_id, f"{name} does not have the digest of the manifest")
    return data
