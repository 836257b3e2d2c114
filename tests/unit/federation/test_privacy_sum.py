"""Clipping, the grid, the noise and the private sum: exact on hand-computed cases, statistics of the noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from skerry_contract.clipping import Grid, clip_state, clip_to_grid, difference_norm, from_grid
from skerry_contract.gaussian import GaussianStream
from skerry_contract.tensors import Array
from skerry_server.federation.privacy import PrivateSum

KEY = bytes(range(32))
MODEL: dict[str, Array] = {
    "layer.weight": np.array([[1.0, 2.0]], np.float32),
    "bn.running_var": np.array([1.0], np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
}
#: Difference (3, 0, 4): norm 5.
STATE: dict[str, Array] = {
    "layer.weight": np.array([[4.0, 2.0]], np.float32),
    "bn.running_var": np.array([5.0], np.float32),
    "bn.num_batches_tracked": np.array(99, np.int64),
}


def floats(array: Array) -> npt.NDArray[np.float64]:
    return array.reshape(-1).astype(np.float64)


def private_sum(
    model: Mapping[str, Array] = MODEL,
    *,
    clip_norm: float = 1.0,
    noise_multiplier: float = 0.0,
    divisor: int = 1,
    key: bytes = KEY,
    purpose: bytes = b"c/1",
    **rest: Any,
) -> PrivateSum:
    return PrivateSum(
        model,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        divisor=divisor,
        key=key,
        purpose=purpose,
        **rest,
    )


class TestClipping:
    def test_a_long_update_is_scaled_with_its_buffers_as_one_vector(self) -> None:
        clipped, norm = clip_state(STATE, MODEL, 2.5)
        assert norm == 5.0
        assert clipped["layer.weight"].tolist() == [[2.5, 2.0]]
        assert clipped["bn.running_var"].tolist() == [3.0]

    def test_counters_keep_the_values_of_the_model(self) -> None:
        for clip_norm in (1.0, 100.0):
            assert clip_state(STATE, MODEL, clip_norm)[0]["bn.num_batches_tracked"] == 7

    def test_a_short_update_is_not_touched(self) -> None:
        clipped, _ = clip_state(STATE, MODEL, 5.0)
        assert clipped["layer.weight"] is STATE["layer.weight"]

    def test_no_update_at_all_is_no_division_by_zero(self) -> None:
        clipped, norm = clip_state(MODEL, MODEL, 1.0)
        assert norm == 0.0
        assert clipped["layer.weight"].tolist() == [[1.0, 2.0]]

    def test_an_update_whose_norm_overflows_is_refused(self) -> None:
        far = {"w": np.array([1e308, 1e308])}
        with pytest.raises(ValueError, match="not finite"):
            clip_state(far, {"w": -far["w"]}, 1.0)

    def test_more_values_than_one_block(self) -> None:
        model: dict[str, Array] = {"w": np.zeros(100_001, np.float32), "v": np.zeros((3, 33_000), np.float16)}
        state: dict[str, Array] = {"w": np.full(100_001, 0.5, np.float32), "v": np.full((3, 33_000), -0.5, np.float16)}
        assert difference_norm(state, model) == pytest.approx(0.5 * math.sqrt(199_001), rel=1e-12)
        clipped, _ = clip_state(state, model, 1.0)
        assert difference_norm(clipped, model) == pytest.approx(1.0, rel=1e-3)  # float16


class TestGrid:
    def test_the_step_is_a_power_of_two_far_below_the_norm(self) -> None:
        assert Grid.of(MODEL, 1.0) == Grid(1.0, 3, 2.0**-36)
        assert Grid.of(MODEL, 3.9).step == 2.0**-35
        assert Grid.of(MODEL, 0.25).step == 2.0**-38

    @settings(max_examples=60, deadline=None)
    @given(
        scale=st.floats(1e-8, 1e8), clip_norm=st.floats(1e-6, 1e6), size=st.integers(1, 2_000), seed=st.integers(0, 99)
    )
    def test_the_integer_vector_is_never_longer_than_the_norm(
        self, scale: float, clip_norm: float, size: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        model = {"w": rng.normal(size=size).astype(np.float32)}
        state = {"w": (model["w"] + scale * rng.normal(size=size)).astype(np.float32)}
        grid = Grid.of(model, clip_norm)
        integers, _ = clip_to_grid(state, model, grid)
        exact = sum(int(value) ** 2 for value in integers["w"])  # Python integers: no rounding
        assert exact <= (clip_norm / grid.step) ** 2

    def test_sums_do_not_depend_on_the_order(self) -> None:
        rng = np.random.default_rng(5)
        states = [{"w": rng.normal(size=500).astype(np.float32)} for _ in range(20)]
        model = {"w": np.zeros(500, np.float32)}

        def total(order: Iterable[int]) -> bytes:
            private = private_sum(model, clip_norm=0.7, noise_multiplier=1.0)
            for index in order:
                private.add(states[index])
            return private.result()["w"].tobytes()

        assert total(range(20)) == total(reversed(range(20)))

    def test_back_from_the_grid(self) -> None:
        grid = Grid.of(MODEL, 8.0)
        integers, _ = clip_to_grid(STATE, MODEL, grid)
        back = from_grid(integers, MODEL, grid, divisor=2)
        assert back["layer.weight"].tolist() == [[2.5, 2.0]]
        assert back["bn.running_var"].tolist() == [3.0]
        assert back["bn.num_batches_tracked"] == 7


class TestNoise:
    def test_it_is_standard_normal(self) -> None:
        values = GaussianStream(KEY, b"statistics").normal(200_001)
        assert stats.kstest(values, "norm").pvalue > 1e-3
        assert abs(values.mean()) < 4 / math.sqrt(len(values))
        assert abs(values.std() - 1) < 4 / math.sqrt(2 * len(values))
        # The two halves of Box and Muller's pairs, and neighbours, are independent.
        assert abs(np.corrcoef(values[:100_000], values[100_000:200_000])[0, 1]) < 4 / math.sqrt(100_000)
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / math.sqrt(len(values))

    def test_the_stream_does_not_depend_on_how_it_is_read(self) -> None:
        whole = GaussianStream(KEY, b"a").normal(8)
        again = GaussianStream(KEY, b"a").normal(8)
        assert whole.tolist() == again.tolist()

    def test_another_key_or_purpose_is_an_independent_stream(self) -> None:
        size = 40_000
        base = GaussianStream(KEY, b"c/1").normal(size)
        for other in (GaussianStream(KEY, b"c/2"), GaussianStream(KEY[::-1], b"c/1"), GaussianStream(KEY, b"c/1x")):
            values = other.normal(size)
            assert not (base == values).any()
            assert abs(np.corrcoef(base, values)[0, 1]) < 4 / math.sqrt(size)

    def test_integers_have_the_standard_deviation(self) -> None:
        integers = np.zeros(100_000, np.int64)
        GaussianStream(KEY, b"i").add_integers(integers, 3.0)
        assert integers.std() == pytest.approx(math.sqrt(9 + 1 / 12), rel=0.02)  # rounding adds 1/12
        expected = stats.norm.cdf(0.5 / 3) - stats.norm.cdf(-0.5 / 3)
        assert (integers == 0).mean() == pytest.approx(expected, rel=0.05)

    @pytest.mark.parametrize("std", [-1.0, math.nan, 2.0**53])
    def test_a_standard_deviation_that_integers_cannot_carry_is_refused(self, std: float) -> None:
        integers = np.zeros(4, np.int64)
        with pytest.raises(ValueError, match="standard deviation"):
            GaussianStream(KEY, b"i").add_integers(integers, std)
        assert not integers.any()

    def test_a_short_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            GaussianStream(b"short", b"")


class TestPrivateSum:
    def test_the_sum_is_divided_by_the_planned_number(self) -> None:
        private = private_sum(clip_norm=8.0, divisor=4)
        assert private.add(STATE) is False
        assert private.add(STATE) is False
        assert private.result()["layer.weight"].tolist() == [[1.0 + 2 * 3.0 / 4, 2.0]]
        assert private.result()["bn.running_var"].tolist() == [1.0 + 2 * 4.0 / 4]

    def test_the_server_clips_again(self) -> None:
        private = private_sum(clip_norm=2.5)
        assert private.add(STATE) is True
        assert private.result()["layer.weight"][0, 0] == pytest.approx(2.5, abs=1e-6)

    def test_a_device_that_clipped_says_so_by_its_norm(self) -> None:
        clipped, norm = clip_state(STATE, MODEL, 2.5)
        private = private_sum(clip_norm=2.5)
        assert private.add(clipped, norm=norm) is True
        assert private.add(clipped, norm=2.4) is False  # its float32 norm of about 2.5 is not held against it
        assert (private.below, private.contributions) == (1, 2)

    def test_the_noise_has_multiplier_times_norm_over_divisor(self) -> None:
        model = {"w": np.zeros(100_000, np.float32)}
        private = private_sum(model, clip_norm=0.5, noise_multiplier=3.0, divisor=10)
        private.add(model)
        noise = floats(private.result()["w"])
        assert noise.std() == pytest.approx(3.0 * 0.5 / 10, rel=0.01)
        assert stats.kstest(noise / 0.15, "norm").pvalue > 1e-3

    def test_rounds_and_campaigns_have_independent_noise_and_a_remade_round_has_the_same(self) -> None:
        model = {"w": np.zeros(30_000, np.float32)}

        def noise(**changes: Any) -> npt.NDArray[np.float64]:
            private = private_sum(model, noise_multiplier=1.0, **changes)
            private.add(model)
            return floats(private.result()["w"])

        first = noise()
        assert first.tobytes() == noise().tobytes()
        for other in (noise(purpose=b"c/2"), noise(purpose=b"d/1"), noise(key=KEY[::-1])):
            assert abs(np.corrcoef(first, other)[0, 1]) < 4 / math.sqrt(30_000)

    def test_another_sum_of_the_same_round_has_independent_noise(self) -> None:
        """Else the difference of two attempts at a round would show one device's update."""
        model = {"w": np.zeros(30_000, np.float32)}
        results = []
        for devices in (1, 2):
            private = private_sum(model, noise_multiplier=1.0)
            for _ in range(devices):
                private.add({"w": np.full(30_000, 1e-4, np.float32)})
            results.append(floats(private.result()["w"]))
        assert (results[1] - results[0]).std() == pytest.approx(math.sqrt(2), rel=0.03)

    def test_the_noise_is_drawn_once_and_nothing_is_added_after_it(self) -> None:
        private = private_sum(noise_multiplier=1.0)
        private.add(STATE)
        assert private.result() is private.result()
        with pytest.raises(RuntimeError, match="released"):
            private.add(STATE)

    def test_personal_parameters_are_neither_summed_nor_noised(self) -> None:
        private = private_sum(clip_norm=8.0, noise_multiplier=1.0, personal=("bn.*",))
        private.add({"layer.weight": STATE["layer.weight"]})
        assert private.result()["bn.running_var"] is MODEL["bn.running_var"]
        assert list(private.result()) == list(MODEL)
        assert private.result()["layer.weight"].tolist() != [[4.0, 2.0]]

    def test_a_variance_never_gets_negative(self) -> None:
        model = {"bn.running_var": np.full(1_000, 0.01, np.float32)}
        private = private_sum(model, noise_multiplier=5.0)
        private.add(model)
        result = private.result()["bn.running_var"]
        assert result.min() == 0.0
        assert result.dtype == np.float32

    def test_an_update_that_is_not_finite_leaves_the_sum_as_it_was(self) -> None:
        model = {"a": np.zeros(2), "b": np.zeros(2)}
        private = private_sum(model, clip_norm=8.0)
        private.add({"a": np.ones(2), "b": np.ones(2)})
        with pytest.raises(ValueError, match="not finite"):
            private.add({"a": np.ones(2), "b": np.array([1.0, math.inf])})
        assert private.contributions == 1
        assert private.result()["a"].tolist() == [1.0, 1.0]

    def test_nothing_was_added(self) -> None:
        with pytest.raises(ValueError, match="nothing"):
            private_sum().result()
