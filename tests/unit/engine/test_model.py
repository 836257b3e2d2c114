"""What a model takes: the table of bad requests, and manifests that do not describe a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skerry_agent.engine.backend import Floats, Port
from skerry_agent.engine.errors import BackendError, MissingValueError, OutOfRangeError, SchemaError
from skerry_agent.engine.model import Model, ModelSpec
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import ArtifactError, InputError
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import ReleaseManifest

SPEC = ModelSpec(
    release_id="r1",
    task="t",
    input=Port("input", (2, 3)),
    minimum=-1.0,
    maximum=float(np.float32(0.1)),
    scores=Port("scores", (2,)),
    features=Port("features", (1,)),
    classes=("no", "yes"),
    maximum_batch=4,
)


class FixedRunner:
    """Gives the scores that it was told to."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = np.array(scores, dtype=np.float32)
        self.closed = False

    def run(self, x: Floats) -> tuple[Floats, ...]:
        return self.scores, np.zeros((len(self.scores), 1), dtype=np.float32)

    def close(self) -> None:
        self.closed = True


def model(scores: list[list[float]] | None = None, spec: ModelSpec = SPEC) -> Model:
    return Model(spec, FixedRunner(scores or [[0.0, 1.0]]), variant="fp32", backend="fixed")


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, dtype=np.float32)


def with_value(value: float) -> Floats:
    x = zeros(2, 2, 3)
    x[1, 0, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        ([[0.0]], SchemaError, "list"),
        (None, SchemaError, "NoneType"),
        (np.zeros((1, 2, 3)), SchemaError, "float64"),
        (np.zeros((1, 2, 3), dtype=np.int8), SchemaError, "int8"),
        (np.zeros((1, 2, 3), dtype=">f4"), SchemaError, ">f4"),
        (zeros(1, 3, 2), SchemaError, "[1, 3, 2]"),
        (zeros(1, 6), SchemaError, "[1, 6]"),
        (zeros(6), SchemaError, "[6]"),
        (zeros(1, 1, 2, 3), SchemaError, "[1, 1, 2, 3]"),
        (zeros(0, 2, 3), SchemaError, "[0, 2, 3]"),
        (zeros(5, 2, 3), SchemaError, "[5, 2, 3]"),
        (with_value(float("nan")), MissingValueError, "NaN at index [1, 0, 2]"),
        (with_value(float("inf")), OutOfRangeError, "inf at index [1, 0, 2]"),
        (with_value(float("-inf")), OutOfRangeError, "-inf at index [1, 0, 2]"),
        (with_value(0.2), OutOfRangeError, "0.2 at index [1, 0, 2]"),
        (with_value(-1.5), OutOfRangeError, "-1.5 at index [1, 0, 2]"),
    ],
)
def test_bad_requests(x: Any, error: type[InputError], says: str) -> None:
    with pytest.raises(error) as caught:
        model().validate(x)
    assert caught.value.field == "input"
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, 0.1, 0.0])
def test_bounds_are_inside(value: float) -> None:
    assert model().validate(with_value(value)).shape == (2, 2, 3)


def test_rows_with_missing_and_outside_values_are_counted() -> None:
    x = zeros(4, 2, 3)
    x[0] = np.nan
    x[2, 1, 1] = np.nan
    x[3] = 9
    with pytest.raises(MissingValueError) as missing:
        model().validate(x)
    assert missing.value.rows == 2
    with pytest.raises(OutOfRangeError) as outside:
        model().validate(x[1:2].repeat(1, axis=0) + np.float32(7))
    assert outside.value.rows == 1


def test_unbounded_input_still_refuses_infinities() -> None:
    spec = dataclasses.replace(SPEC, minimum=-float(np.finfo(np.float32).max), maximum=float(np.finfo(np.float32).max))
    model(spec=spec).validate(with_value(3e38))
    with pytest.raises(OutOfRangeError):
        model(spec=spec).validate(with_value(float("inf")))


def test_one_row_gets_its_batch_dimension_without_a_copy() -> None:
    x = zeros(2, 3)
    validated = model().validate(x)
    assert validated.shape == (1, 2, 3)
    assert np.shares_memory(x, validated)


@pytest.mark.parametrize("scores", [[[0.0, float("nan")]], [[float("inf"), 0.0]], [[0.0, 1.0], [float("nan"), 0.0]]])
def test_scores_that_are_not_finite_are_the_release_s_fault(scores: list[list[float]]) -> None:
    with pytest.raises(BackendError, match="not finite"):
        model(scores).run(zeros(len(scores), 2, 3))


def test_prediction_derives_labels_and_confidence() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4); of (ln 4, 0) is (4/5, 1/5)
    scores = np.array([[0.0, np.log(3)], [np.log(4), 0.0]], dtype=np.float32)
    prediction = Prediction(scores, zeros(2, 1), ("no", "yes"), "r1", "", 10.0)
    assert prediction.labels.tolist() == [1, 0]
    assert (prediction.label, prediction.class_name) == (1, "yes")
    assert prediction.confidences.tolist() == pytest.approx([0.75, 0.8])
    assert prediction.confidence == pytest.approx(0.75)


def manifest(change: Callable[[ReleaseManifest], object]) -> ReleaseManifest:
    message = ReleaseManifest(
        release_id="r1",
        task="t",
        inputs=[TensorSpec(name="input", dtype="float32", shape=[-1, 2, 3], minimum=0.0, maximum=16.0)],
        outputs=[
            TensorSpec(name="scores", dtype="float32", shape=[-1, 2], labels=["no", "yes"]),
            TensorSpec(name="features", dtype="float32", shape=[-1, 4]),
        ],
        scores_output="scores",
        features_output="features",
    )
    change(message)
    return message


def test_specification_of_a_manifest() -> None:
    spec = ModelSpec.from_manifest(manifest(lambda _: None))
    assert spec.input == Port("input", (2, 3))
    assert (spec.minimum, spec.maximum) == (0.0, 16.0)
    assert spec.classes == ("no", "yes")
    assert spec.features == Port("features", (4,))
    assert spec.maximum_batch == 64
    assert spec.row_bytes == 24


def test_a_large_input_has_a_smaller_largest_batch() -> None:
    # 1,000 x 1,000 x 3 floats are 12 MB; 64 MiB hold 5 of them.
    spec = ModelSpec.from_manifest(manifest(lambda m: m.inputs[0].shape.__setitem__(slice(1, None), [1000, 3000])))
    assert spec.maximum_batch == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.inputs.add(name="other", dtype="float32", shape=[-1, 1]), "2 inputs"),
        (lambda m: m.inputs.pop(), "0 inputs"),
        (lambda m: setattr(m, "scores_output", "logits"), "scores output 'logits'"),
        (lambda m: setattr(m, "features_output", ""), "features output ''"),
        (lambda m: setattr(m.inputs[0], "dtype", "int8"), "int8"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 1), "[1, 2, 3]"),
        (lambda m: m.inputs[0].shape.__setitem__(2, 0), "[-1, 2, 0]"),
        (lambda m: m.outputs[0].labels.pop(), "1 class names"),
        (lambda m: m.outputs[1].shape.__setitem__(1, 65), "[65]"),
        (lambda m: m.inputs[0].shape.__setitem__(slice(1, None), [10_000, 10_000]), "more than"),
    ],
)
def test_a_manifest_that_describes_no_model(change: Callable[[ReleaseManifest], object], says: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        ModelSpec.from_manifest(manifest(change))
    assert says in caught.value.reason
