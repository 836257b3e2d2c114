"""What both doors do with a request: check it against the model, infer, remember it for labels.

The doors translate; every decision is here or in the engine, so that HTTP and gRPC cannot disagree.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from skerry_agent.engine.engine import Engine, EngineStatus
from skerry_agent.engine.errors import NoReleaseError, SchemaError
from skerry_agent.engine.model import ModelSpec
from skerry_agent.errors import InputError
from skerry_agent.serving.call import InferAnswer, InferCall
from skerry_agent.serving.errors import UnknownModelError
from skerry_agent.serving.labels import LabelDesk
from skerry_agent.serving.recent import AnsweredRequest, RecentRequests
from skerry_contract.limits import INFERENCE_BYTES

SERVER_NAME = "skerry-agent"
EXTENSIONS = ("binary_tensor_data", "skerry_labels")
#: Largest request id (characters).
REQUEST_ID_CHARACTERS = 128
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
        """Largest valid request as text: at most 32 characters a value (bytes)."""
        return min(self.body_limit * 8, 16 << 20)

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

    def infer(self, call: InferCall) -> InferAnswer:
        """Answer a call.

        Raises:
            NoReleaseError: No release is active.
            UnknownModelError: Another model or version.
            InputError: A wrong tensor, type, shape, value or output name.
            BackendError: The runtime failed.
        """
        spec = self.require_model(call.model, call.version)
        try:
            outputs = _check_call(spec, call)
        except InputError as error:
            self._engine.count_refusal(error)
            raise
        x = call.inputs[spec.input.name]
        prediction = self._engine.infer(x, call.request_id or secrets.token_hex(8))
        predicted = tuple(prediction.labels.tolist())
        floats = x.astype("float32", copy=False)  # it is float32: the engine has checked it
        rows = floats if floats.ndim > len(spec.input.shape) else floats[None]
        self._recent.add(
            prediction.request_id, AnsweredRequest(rows, predicted, prediction.classes, prediction.release_id)
        )
        values = {spec.scores.name: prediction.scores, spec.features.name: prediction.features}
        return InferAnswer(
            spec.task, prediction.release_id, prediction.request_id, {name: values[name] for name in outputs}
        )

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
