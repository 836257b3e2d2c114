"""Sorting networks, kernels over columns, the spool of updates and the distances between them."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.tensors import Array
from skerry_server.errors import PlatformError
from skerry_server.federation.aggregation import jit, network, spool
from skerry_server.federation.aggregation.columns import ColumnKernels, CompiledColumnKernels, column_kernels
from skerry_server.federation.aggregation.distances import gram, squared_distances
from skerry_server.federation.aggregation.rows import combine_columns, weighted_sum
from skerry_server.federation.aggregation.spool import UpdateSpool

needs_numba = pytest.mark.skipif(not jit.available(), reason="numba is not installed")
KERNELS = [ColumnKernels(), pytest.param(CompiledColumnKernels(), marks=needs_numba)]

Values = npt.NDArray[Any]


def ran(operations: network.Operations, values: list[int]) -> list[int]:
    values = list(values)
    for pattern, *rows in operations.tolist():
        for low, high in network.PATTERNS[pattern]:
            a, b = rows[low], rows[high]
            values[a], values[b] = min(values[a], values[b]), max(values[a], values[b])
    return values


@pytest.mark.parametrize("count", range(1, 11))
def test_networks_sort_every_pattern_of_zeros_and_ones(count: int) -> None:
    """A network that sorts all of them sorts everything (Knuth, The Art of Computer Programming 3, 5.3.4)."""
    for first, stop in ((0, count), ((count - 1) // 2, count // 2 + 1)):
        operations = network.operations(count, first, stop)
        for bits in itertools.product((0, 1), repeat=count):
            assert ran(operations, list(bits))[first:stop] == sorted(bits)[first:stop]


def test_packing_does_each_comparator_once_and_saves_loads() -> None:
    comparators = network.selection_network(100, (49, 50))
    operations = network.operations(100, 49, 51)
    done = [
        (rows[low], rows[high]) for pattern, *rows in operations.tolist() for low, high in network.PATTERNS[pattern]
    ]
    assert sorted(done) == sorted(comparators)
    loads = sum(2 if pattern == 0 else 4 for pattern in operations[:, 0])
    assert loads < 0.7 * 2 * len(comparators)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_by_hand(kernels: ColumnKernels, dtype: type[np.floating[Any]]) -> None:
    block = np.array([[5, -1], [1, 7], [3, 7], [100, 2], [2, -50]], dtype)
    out = np.empty(2, dtype)
    kernels.median(block.copy(), out)
    assert out.tolist() == [3, 2]
    kernels.median(block[:4].copy(), out)
    assert out.tolist() == [4, 4.5]
    kernels.trimmed_mean(block.copy(), 1, out)
    np.testing.assert_array_equal(out, np.array([10 / 3, 8 / 3], dtype))
    kernels.closest_mean(block.copy(), 3, out)  # medians 3 and 2; 1 is as far from 3 as 5: the larger goes first
    np.testing.assert_array_equal(out, np.array([2, (2 - 1 + 7) / 3], dtype))


@pytest.mark.parametrize("kernels", KERNELS)
def test_kernels_refuse_what_is_not_defined(kernels: ColumnKernels) -> None:
    block, out = np.ones((4, 2), np.float32), np.full(2, 9, np.float32)
    with pytest.raises(ValueError, match="cannot be cut"):
        kernels.trimmed_mean(block, 2, out)
    with pytest.raises(ValueError, match="cannot be kept"):
        kernels.closest_mean(block, 5, out)
    assert out.tolist() == [9, 9]


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_zero_is_positive(kernels: ColumnKernels) -> None:
    out = np.empty(1, np.float32)
    kernels.median(np.full((3, 1), -0.0, np.float32), out)
    assert not np.signbit(out[0])


@needs_numba
@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), columns=st.integers(1, 1100), seed=st.integers(0, 2**31), ties=st.booleans())
def test_compiled_kernels_give_the_bits_of_numpy(count: int, columns: int, seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    block = generator.standard_normal((count, columns), dtype=np.float32)
    block = np.round(block, 1) if ties else block * np.float32(10.0) ** generator.integers(-20, 20, (count, 1))
    block = block.astype(np.float32)
    fast, slow = CompiledColumnKernels(), ColumnKernels()
    calls: list[tuple[str, tuple[int, ...]]] = [("median", ())]
    calls += [("trimmed_mean", (trim,)) for trim in {0, count // 5, (count - 1) // 2}]
    calls += [("closest_mean", (keep,)) for keep in {1, (count + 1) // 2, count}]
    for name, extra in calls:
        ours, theirs = np.empty(columns, np.float32), np.empty(columns, np.float32)
        getattr(fast, name)(block.copy(), *extra, ours)
        getattr(slow, name)(block.copy(), *extra, theirs)
        np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32), err_msg=f"{name} {extra}")


@needs_numba
def test_more_updates_than_a_network_is_good_for() -> None:
    block = np.random.default_rng(0).standard_normal((1025, 3), dtype=np.float32)
    out = np.empty(3, np.float32)
    CompiledColumnKernels().median(block.copy(), out)
    np.testing.assert_array_equal(out, np.median(block, axis=0))


MODEL: dict[str, Array] = {
    "weight": np.zeros((3, 2), np.float32),
    "half": np.zeros(3, np.float16),
    "count": np.array(0, np.int64),
    "empty": np.zeros((0, 2), np.float32),
    "flags": np.zeros(2, np.bool_),
    "wide": np.zeros(2, np.float64),
}


def states(count: int) -> list[dict[str, Array]]:
    generator = np.random.default_rng(1)
    return [
        {name: np.asarray(generator.normal(size=array.shape) * 9).astype(array.dtype) for name, array in MODEL.items()}
        for _ in range(count)
    ]


def test_a_spooled_state_comes_back_as_it_was(tmp_path: Path) -> None:
    made = states(3)
    kept = UpdateSpool(MODEL, tmp_path)
    for number, state in enumerate(made):
        kept.add(f"device-{number}", state)
    for row, state in enumerate(made):
        back = weighted_sum(kept, [row], np.ones(1))
        assert list(back) == list(MODEL)
        for name, array in back.items():
            assert (array.dtype, array.shape) == (MODEL[name].dtype, MODEL[name].shape)
            np.testing.assert_array_equal(array, state[name])
    assert list(tmp_path.iterdir()) == []  # nameless: a killed process leaves nothing behind
    kept.close()
    kept.close()


def test_rows_are_in_the_order_of_their_keys(tmp_path: Path) -> None:
    kept = UpdateSpool(MODEL, tmp_path)
    for key, state in zip(("c", "a", "b"), states(3), strict=True):
        kept.add(key, state)
    assert kept.order == [1, 2, 0]


def test_a_state_of_another_network_is_refused_and_nothing_is_added(tmp_path: Path) -> None:
    kept = UpdateSpool(MODEL, tmp_path)
    state = states(1)[0]
    with pytest.raises(ValueError, match="other names"):
        kept.add("a", {"weight": state["weight"]})
    with pytest.raises(ValueError, match="half"):
        kept.add("a", {**state, "half": np.zeros(4, np.float16)})
    assert len(kept) == 0
    kept.add("a", state)
    np.testing.assert_array_equal(weighted_sum(kept, [0], np.ones(1))["weight"], state["weight"])


def test_a_scratch_folder_that_is_none_is_the_environment_s_fault(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="make room"):
        UpdateSpool(MODEL, tmp_path / "missing")


def test_a_full_disk_adds_nothing(tmp_path: Path) -> None:
    kept = UpdateSpool(MODEL, tmp_path)
    kept.add("a", states(1)[0])
    full = os.open("/dev/full", os.O_RDWR)
    saved = os.dup(kept._file.fileno())
    try:
        os.dup2(full, kept._file.fileno())
        with pytest.raises(PlatformError, match="No space left"):
            kept.add("b", states(2)[1])
    finally:
        os.dup2(saved, kept._file.fileno())
        os.close(full)
        os.close(saved)
    assert len(kept) == 1
    np.testing.assert_array_equal(weighted_sum(kept, [0], np.ones(1))["weight"], states(1)[0]["weight"])


@pytest.mark.parametrize("block_bytes", [1, 64, 1 << 20])
def test_chunks_do_not_change_the_result(tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BLOCK_BYTES", block_bytes)
    kept = UpdateSpool(MODEL, tmp_path)
    made = states(5)
    for number, state in enumerate(made):
        kept.add(str(number), state)
    result = combine_columns(kept, kept.order, column_kernels().median)
    for name in ("weight", "wide", "half", "empty"):
        expected = np.median(np.stack([np.asarray(state[name], np.float64) for state in made]), axis=0)
        np.testing.assert_array_equal(result[name], expected.astype(MODEL[name].dtype))
    products = gram(kept, kept.order, made[0])
    flat = np.array([np.concatenate([state[name].astype(float).ravel() for name in MODEL]) for state in made])
    np.testing.assert_allclose(products, (flat - flat[0]) @ (flat - flat[0]).T, rtol=1e-12, atol=1e-12)


def test_memory_is_a_block_and_a_model_whatever_the_updates(tmp_path: Path) -> None:
    model: dict[str, Array] = {"w": np.zeros(400_000, np.float32)}
    state: dict[str, Array] = {"w": np.random.default_rng(0).standard_normal(400_000, dtype=np.float32)}
    column_kernels().median(np.ones((3, 8), np.float32), np.empty(8, np.float32))  # compiled before it is measured
    for count in (10, 80):
        kept = UpdateSpool(model, tmp_path)
        tracemalloc.start()
        for number in range(count):
            kept.add(str(number), state)
        combine_columns(kept, kept.order, column_kernels().median)
        gram(kept, kept.order, model)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        kept.close()
        assert peak < (32 << 20) + 2 * 1_600_000


def test_distances_between_updates_that_lie_close_together(tmp_path: Path) -> None:
    """From the origin in float32, as in Flower, these distances drown in rounding."""
    generator = np.random.default_rng(0)
    centre = {"w": (1000 * generator.standard_normal(10_000)).astype(np.float32)}
    kept = UpdateSpool(centre, tmp_path)
    made = [centre["w"] + generator.normal(scale=0.1, size=10_000).astype(np.float32) for _ in range(6)]
    for number, values in enumerate(made):
        kept.add(str(number), {"w": values})
    distances = squared_distances(gram(kept, kept.order, centre))
    exact = np.array([[np.sum((a.astype(float) - b.astype(float)) ** 2) for a in made] for b in made])
    np.testing.assert_allclose(distances, exact, rtol=1e-12)
    assert (np.diag(distances) == 0).all()
