"""A loaded model: what it takes, what it gives, and the check of every request before it runs.

The check refuses what onnxruntime would silently compute with: NaN, infinities, values outside the range of the
manifest. It costs one pass over the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.arrays import seal, within
from skerry_agent.engine.backend import Floats, Port, Runner
from skerry_agent.engine.errors import BackendError, MissingValueError, OutOfRangeError, SchemaError
from skerry_agent.errors import ArtifactError
from skerry_contract.limits import CLASSES, FEATURES, INFERENCE_BYTES, TENSOR_RANK
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import ReleaseManifest

#: Largest batch of one request (rows); the graphs are exported for 1 to 64.
MAXIMUM_BATCH = 64

_FLOAT32 = np.dtype(np.float32)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ModelSpec:
    """What a release takes and gives, from its verified manifest.

    Attributes:
        release_id: The release.
        task: Its task: the model's name at the doors.
        input: The data input.
        minimum: Smallest accepted value (float32).
        maximum: Largest accepted value (float32).
        scores: Output with class scores, [classes].
        features: Output with drift features, [F].
        classes: Class names in the order of the scores.
        maximum_batch: Most rows of one request.
        deadline_us: How long an answer may take (us); 0 if the release does not say.
    """

    release_id: str
    task: str
    input: Port
    minimum: float
    maximum: float
    scores: Port
    features: Port
    classes: tuple[str, ...]
    maximum_batch: int
    deadline_us: float = 0.0

    @property
    def row_bytes(self) -> int:
        """Size of one row of input (bytes)."""
        return 4 * math.prod(self.input.shape)

    @classmethod
    def from_manifest(cls, manifest: ReleaseManifest) -> ModelSpec:
        """Read the specification out of a manifest.

        Raises:
            ArtifactError: It does not describe one float32 input, scores and features.
        """
        release_id = manifest.release_id
        if len(manifest.inputs) != 1:
            raise ArtifactError(release_id, f"{len(manifest.inputs)} inputs instead of one")
        outputs = {spec.name: spec for spec in manifest.outputs}
        for role, name in (("scores", manifest.scores_output), ("features", manifest.features_output)):
            if name not in outputs:
                raise ArtifactError(release_id, f"the {role} output {name!r} is not among {sorted(outputs)}")
        scores_spec = outputs[manifest.scores_output]
        data = manifest.inputs[0]
        port = _port(release_id, data)
        scores, features = _port(release_id, scores_spec), _port(release_id, outputs[manifest.features_output])
        classes = tuple(scores_spec.labels)
        if len(scores.shape) != 1 or not 1 <= scores.shape[0] <= CLASSES or len(classes) != scores.shape[0]:
            raise ArtifactError(release_id, f"scores are {list(scores.shape)} for {len(classes)} class names")
        if len(features.shape) != 1 or not 1 <= features.shape[0] <= FEATURES:
            raise ArtifactError(release_id, f"features are {list(features.shape)}, not [1 to {FEATURES}]")
        row_bytes = 4 * math.prod(port.shape)
        if row_bytes > INFERENCE_BYTES:
            raise ArtifactError(release_id, f"one row of input is {row_bytes} bytes, more than {INFERENCE_BYTES}")
        return cls(
            release_id=release_id,
            task=manifest.task,
            input=port,
            minimum=_bound(data.minimum if data.HasField("minimum") else -_LARGEST),
            maximum=_bound(data.maximum if data.HasField("maximum") else _LARGEST),
            scores=scores,
            features=features,
            classes=classes,
            maximum_batch=max(1, min(MAXIMUM_BATCH, INFERENCE_BYTES // row_bytes)),
            deadline_us=float(manifest.deadline_us),
        )


def _port(release_id: str, spec: TensorSpec) -> Port:
    shape = tuple(spec.shape)
    if spec.dtype != "float32" or not 2 <= len(shape) <= TENSOR_RANK or shape[0] != -1 or min(shape[1:]) < 1:
        raise ArtifactError(release_id, f"tensor {spec.name} is {spec.dtype} {list(shape)}, not float32 [-1, sizes]")
    return Port(spec.name, shape[1:])


def _bound(value: float) -> float:
    """A bound as float32 sees it: a value that rounds to the bound is inside."""
    return float(np.float32(min(max(value, -_LARGEST), _LARGEST)))


class Model:
    """A runner that has passed the golden check, and its specification.

    Args:
        spec: From the manifest.
        runner: Gives (scores, features).
        variant: Name of the variant.
        backend: Name of the backend.
    """

    def __init__(self, spec: ModelSpec, runner: Runner, *, variant: str, backend: str) -> None:
        self.spec = spec
        self.variant = variant
        self.backend = backend
        self._runner = runner
        self._shape = spec.input.shape
        self._usual = (1, *spec.input.shape)
        self._batch_rank = len(spec.input.shape) + 1
        self._minimum = spec.minimum
        self._maximum = spec.maximum

    def validate(self, x: npt.NDArray[np.generic]) -> Floats:
        """Check a request.

        Args:
            x: float32 [batch, ...], or one row without the batch dimension.

        Returns:
            float32 [batch, ...], a view of ``x``.

        Raises:
            SchemaError: Not an array, another type, shape or number of rows.
            MissingValueError: A NaN.
            OutOfRangeError: A value outside the range, or an infinity.
        """
        usual = type(x) is np.ndarray and x.dtype is _FLOAT32 and x.shape == self._usual
        floats: Floats = x if usual else self._rows_of(x)  # type: ignore[assignment]  # the type is checked
        if not within(floats, self._minimum, self._maximum):
            raise self._out_of_range(floats)
        return floats

    def _rows_of(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """``x`` as rows, for everything but one row in a batch; raises SchemaError."""
        spec = self.spec
        if not isinstance(x, np.ndarray) or x.dtype != _FLOAT32:
            got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise SchemaError(spec.input.name, expected="a float32 array", got=got)
        if x.ndim == self._batch_rank - 1 and x.shape == self._shape:
            x = x[np.newaxis]
        if x.ndim != self._batch_rank or x.shape[1:] != self._shape or not 1 <= x.shape[0] <= spec.maximum_batch:
            expected = f"shape [1..{spec.maximum_batch}, {', '.join(map(str, self._shape))}]"
            raise SchemaError(spec.input.name, expected=expected, got=f"shape {list(x.shape)}")
        return x

    def run(self, x: Floats) -> tuple[Floats, Floats]:
        """Compute (scores [batch, classes], features [batch, F]) of a validated request; both are read-only.

        Raises:
            BackendError: The runtime failed, or gave scores that are not finite.
        """
        scores, features = self._runner.run(x)
        if not within(scores, -_LARGEST, _LARGEST):
            raise BackendError(self.backend, "run", f"release {self.spec.release_id} gave scores that are not finite")
        seal(scores, features)
        return scores, features

    def close(self) -> None:
        """Free the runner. The caller makes sure that nobody uses it."""
        self._runner.close()

    def _out_of_range(self, x: Floats) -> MissingValueError | OutOfRangeError:
        rows = x.reshape(x.shape[0], -1)
        name = self.spec.input.name
        missing = np.isnan(rows)
        if missing.any():
            first = tuple(int(i) for i in np.argwhere(np.isnan(x))[0])
            return MissingValueError(
                name, expected="finite values", got=f"NaN at index {list(first)}", rows=int(missing.any(axis=1).sum())
            )
        outside = (x < self._minimum) | (x > self._maximum)
        first = tuple(int(i) for i in np.argwhere(outside)[0])
        return OutOfRangeError(
            name,
            expected=f"values from {self._minimum:g} to {self._maximum:g}",
            got=f"{float(x[first]):g} at index {list(first)}",
            rows=int(outside.reshape(x.shape[0], -1).any(axis=1).sum()),
        )
