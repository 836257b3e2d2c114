"""What every door does with a request: check it against the model, infer, remember it for labels.

The doors translate; every decision is here or in the engine, so that HTTP, gRPC and shared memory cannot disagree.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerry_agent.engine.backend import Floats
from skerry_agent.engine.engine import Engine
from skerry_agent.engine.errors import NoReleaseError, SchemaError
from skerry_agent.engine.model import ModelSpec
from skerry_agent.engine.prediction import Prediction
from skerry_agent.engine.status import EngineStatus
from skerry_agent.errors import InputError
from skerry_agent.serving.call import Array, InferAnswer, InferCall
from skerry_agent.serving.errors import UnknownModelError
from skerry_agent.serving.labels import LabelDesk
from skerry_agent.serving.recent import AnsweredRequest, RecentRequests
from skerry_contract.limits import INFERENCE_BYTES

SERVER_NAME = "skerry-agent"
EXTENSIONS = ("binary_tensor_data", "statistics", "skerry_deadline", "skerry_labels", "skerry_variant")
#: Answer to whoever asks for Triton's model configuration.
NO_CONFIGURATION = (
    "the model configuration is Triton's own extension, which this device does not have; ask for metadata"
)
#: Largest request id (characters).
REQUEST_ID_CHARACTERS = 128
#: Largest request as text, unless one row needs more (bytes).
TEXT_BYTES = 4 << 20
#: Room for names, shapes and parameters around the tensor of a request (bytes).
OVERHEAD_BYTES = 64 << 10


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the metadata of a model: name, Open Inference Protocol type, shape with -1 for the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of the model.

    Attributes:
        name: The task.
        versions: The active release.
        platform: Backend and variant.
        inputs: The data input.
        outputs: Scores and features.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class ModelStatistics:
    """What the model has done since the process started, as far as Triton's statistics extension asks for it.

    Attributes:
        name: The task.
        version: The active release.
        rows: Rows answered.
        requests: Requests answered.
        success_ns: Time that they took in the engine.
        failures: Requests that were refused, shed, or failed.
    """

    name: str
    version: str
    rows: int
    requests: int
    success_ns: int
    failures: int

    def document(self) -> dict[str, Any]:
        """As JSON."""
        success = {"count": self.requests, "ns": self.success_ns}
        stats = {"success": success, "fail": {"count": self.failures, "ns": 0}, "compute_infer": success}
        return {
            "name": self.name,
            "version": self.version,
            "inference_count": self.rows,
            "execution_count": self.requests,
            "inference_stats": stats,
        }


class ServingCore:
    """One engine behind every door. Thread-safe.

    Args:
        engine: Answers.
        recent: Remembers requests for labels.
        labels: Takes labels.
    """

    def __init__(self, engine: Engine, *, recent: RecentRequests, labels: LabelDesk) -> None:
        self._engine = engine
        self._recent = recent
        self.labels = labels
        self._ids: list[str] = []

    @property
    def spec(self) -> ModelSpec | None:
        """What the active release takes and gives; None if there is none."""
        return self._engine.spec

    @property
    def ready(self) -> bool:
        """Whether a release is active."""
        return self._engine.spec is not None

    @property
    def body_limit(self) -> int:
        """Largest valid request in binary form (bytes)."""
        spec = self._engine.spec
        tensor = 0 if spec is None else spec.row_bytes * spec.maximum_batch
        return min(tensor, INFERENCE_BYTES) + OVERHEAD_BYTES

    @property
    def text_limit(self) -> int:
        """Largest accepted request as text: at most 32 characters a value (bytes).

        Text that is parsed holds up every other door, so a large batch has to come in binary form.
        """
        spec = self._engine.spec
        row = 0 if spec is None else spec.row_bytes
        return min(self.body_limit * 8, max(TEXT_BYTES, row * 8 + OVERHEAD_BYTES))

    def status(self) -> EngineStatus:
        """State of the engine."""
        return self._engine.status()

    def require_model(self, name: str, version: str) -> ModelSpec:
        """The specification of the active release.

        Raises:
            NoReleaseError: None is active.
            UnknownModelError: Another name or version.
        """
        spec = self._engine.spec
        if spec is None:
            raise NoReleaseError(self._engine.status().detail)
        if name != spec.task:
            raise UnknownModelError(name, spec.task)
        if version not in ("", spec.release_id):
            raise UnknownModelError(f"{name} version {version}", f"{spec.task} version {spec.release_id}")
        return spec

    def metadata(self, name: str, version: str) -> ModelInfo:
        """Metadata of the model; raises like :meth:`require_model`."""
        spec = self.require_model(name, version)
        status = self._engine.status()
        return ModelInfo(
            name=spec.task,
            versions=(spec.release_id,),
            platform=f"{status.backend}_{status.variant}",
            inputs=(TensorInfo(spec.input.name, "FP32", (-1, *spec.input.shape)),),
            outputs=tuple(TensorInfo(port.name, "FP32", (-1, *port.shape)) for port in (spec.scores, spec.features)),
        )

    def statistics(self, name: str, version: str) -> tuple[ModelStatistics, ...]:
        """Statistics of a model, or of all there are for an empty name; raises like :meth:`require_model`."""
        spec = self._engine.spec
        if spec is None and not name:
            return ()
        spec = self.require_model(name or ("" if spec is None else spec.task), version)
        counters = self._engine.status().counters
        failures = counters.errors + sum(counters.refused.values()) + sum(counters.shed.values())
        success_ns = round(counters.latency_sum_us * 1000)
        return (ModelStatistics(spec.task, spec.release_id, counters.rows, counters.requests, success_ns, failures),)

    def infer(self, call: InferCall) -> InferAnswer:
        """Answer a call.

        Raises:
            NoReleaseError: No release is active.
            UnknownModelError: Another model or version.
            InputError: A wrong tensor, type, shape, value, deadline or output name.
            DeadlineError: The answer would come too late; nothing was computed.
            OverloadedError: Too many requests are under way; nothing was computed.
            BackendError: The runtime failed.
        """
        spec = self.require_model(call.model, call.version)
        try:
            outputs = _check_call(spec, call)
        except InputError as error:
            self._engine.count_refusal(error)
            raise
        x = call.inputs[spec.input.name]
        if x.shape == spec.input.shape:
            x = x[np.newaxis]
        prediction = self.predict(x, call.request_id, call.deadline_us)
        values = {spec.scores.name: prediction.scores, spec.features.name: prediction.features}
        return InferAnswer(
            spec.task,
            prediction.release_id,
            prediction.request_id,
            {name: values[name] for name in outputs},
            prediction.variant,
            prediction.rung,
            prediction.latency_us,
        )

    def predict(
        self, x: Array, request_id: str, deadline_us: float | None, checked: ModelSpec | None = None
    ) -> Prediction:
        """Answer rows whose request has been checked in all but its values, and remember them for labels.

        Args:
            x: [batch, ...]; must not be changed any more.
            request_id: Empty asks for a generated one.
            deadline_us: How long the answer may take; None: the device decides.
            checked: Of which specification ``x`` is known to be valid rows, values included.

        Raises:
            AgentError: As :meth:`infer`.
        """
        prediction = self._engine.infer(x, request_id or self._new_id(), deadline_us=deadline_us, checked=checked)
        rows: Floats = x  # type: ignore[assignment]  # the engine has checked the type
        self._recent.add(
            prediction.request_id,
            AnsweredRequest(rows, prediction.scores, prediction.classes, prediction.release_id),
        )
        return prediction

    def _new_id(self) -> str:
        """An id that nobody can guess, for who knows it may label the request; drawn many at a time."""
        try:
            return self._ids.pop()
        except IndexError:
            text = secrets.token_hex(8 * 512)
            self._ids.extend(text[start : start + 16] for start in range(0, len(text), 16))
            return secrets.token_hex(8)

    def refuse(self, error: InputError) -> None:
        """Count a request that a door could not even decode."""
        self._engine.count_refusal(error)


def _check_call(spec: ModelSpec, call: InferCall) -> tuple[str, ...]:
    """Names of the outputs to give; raises SchemaError."""
    if len(call.request_id) > REQUEST_ID_CHARACTERS:
        raise SchemaError("id", expected=f"at most {REQUEST_ID_CHARACTERS} characters", got=len(call.request_id))
    unknown = [name for name in call.inputs if name != spec.input.name]
    if unknown:
        raise SchemaError(f"inputs[{unknown[0][:80]}]", expected=f"only the input {spec.input.name}", got="that name")
    if spec.input.name not in call.inputs:
        raise SchemaError("inputs", expected=f"the input {spec.input.name}", got="none")
    known = (spec.scores.name, spec.features.name)
    for name in call.outputs:
        if name not in known:
            raise SchemaError(f"outputs[{name[:80]}]", expected=f"one of {', '.join(known)}", got="that name")
    return tuple(dict.fromkeys(call.outputs)) or known
