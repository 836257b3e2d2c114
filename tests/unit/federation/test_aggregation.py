"""The streaming mean by hand, as a property, and against Flower's own aggregation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry_contract.tensors import Array as TensorArray
from skerry_server.federation.aggregation import StreamingMean
from unit.agent_training.linear_graphs import numbers
from unit.federation.flower_replies import flower_aggregate


def test_by_hand() -> None:
    mean = StreamingMean({"w": np.zeros((2, 2), np.float32), "steps": np.array(0, np.int64)})
    mean.add({"w": np.array([[1, 2], [3, 4]], np.float32), "steps": np.array(10)}, 1)
    mean.add({"w": np.array([[5, 6], [7, 8]], np.float32), "steps": np.array(13)}, 3)
    result = mean.result()
    np.testing.assert_array_equal(result["w"], [[4, 5], [6, 7]])
    assert result["w"].dtype == np.float32
    assert result["steps"].shape == ()
    assert result["steps"].dtype.name == "int64"
    assert numbers(result["steps"]) == 12
    assert mean.weight == 4


def test_what_was_added_may_be_forgotten_and_is_not_changed() -> None:
    x = np.arange(6, dtype=np.float32)
    x.setflags(write=False)
    mean = StreamingMean({"w": x})
    mean.add({"w": x}, 2.0)
    mean.add({"w": x}, 5.0)
    np.testing.assert_allclose(numbers(mean.result()["w"]), np.arange(6), rtol=1e-6)
    np.testing.assert_array_equal(x, np.arange(6))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_must_be_positive(weight: float) -> None:
    mean = StreamingMean({"w": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="positive"):
        mean.add({"w": np.ones(1, np.float32)}, weight)
    with pytest.raises(ValueError, match="nothing was added"):
        mean.result()


def test_names_must_be_those_of_the_model() -> None:
    with pytest.raises(ValueError, match="other names"):
        StreamingMean({"w": np.zeros(1, np.float32)}).add({"v": np.zeros(1, np.float32)}, 1)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(hnp.arrays(np.float32, 5, elements=st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=8),
    weights=st.lists(st.integers(1, 100_000), min_size=8, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_the_mean_lies_between_its_parts_in_any_order(
    values: list[np.ndarray], weights: list[int], order: object
) -> None:
    pairs = list(zip(values, weights, strict=False))
    exact = np.average([numbers(value) for value, _ in pairs], axis=0, weights=[weight for _, weight in pairs])
    order.shuffle(pairs)  # type: ignore[attr-defined]  # random.Random
    mean = StreamingMean({"w": values[0]})
    for value, weight in pairs:
        mean.add({"w": value}, weight)
    result = numbers(mean.result()["w"])
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(values).max())))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.bool_])
def test_types_stay(dtype: type[np.generic]) -> None:
    array = np.array([[1, 0], [1, 1]]).astype(dtype)
    mean = StreamingMean({"w": array})
    for weight in (1, 2, 3):
        mean.add({"w": array}, weight)
    assert mean.result()["w"].dtype == dtype
    np.testing.assert_array_equal(mean.result()["w"], array)


def test_empty_and_scalar_tensors() -> None:
    model = {"none": np.zeros((0, 3), np.float32), "one": np.array(2.0, np.float32)}
    mean = StreamingMean(model)
    mean.add(model, 7)
    result = mean.result()
    assert (result["none"].shape, result["one"].shape) == ((0, 3), ())
    assert numbers(result["one"]) == 2.0


def test_equal_to_flower() -> None:
    generator = np.random.default_rng(3)
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "scale": ()}
    states = [
        {name: np.asarray(generator.normal(size=shape), dtype=np.float32) for name, shape in shapes.items()}
        for _ in range(7)
    ]
    examples = [int(n) for n in generator.integers(1, 500, 7)]
    theirs = flower_aggregate(FedAvg(), 1, states, examples)
    ours = StreamingMean(states[0])
    for state, count in zip(states, examples, strict=True):
        ours.add(state, count)
    for name, array in ours.result().items():
        np.testing.assert_allclose(numbers(array), theirs[name], atol=1e-6, rtol=1e-6)


def test_memory_does_not_grow_with_the_updates() -> None:
    model: dict[str, TensorArray] = {"w": np.zeros(200_000, np.float32), "steps": np.zeros(100_000, np.int64)}
    peaks = []
    for count in (2, 20):
        tracemalloc.start()
        mean = StreamingMean(model)
        for _ in range(count):
            mean.add(model, 1)
        mean.result()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
