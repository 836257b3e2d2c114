"""The compiled loops give the bits of the contract's."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_contract.update_codec import LOSSY, decode_difference, encode_difference
from skerry_contract.update_layout import BLOCK, Float32
from skerry_contract.update_quantise import PIECE, Kernels, NumpyKernels, Random16
from skerry_server.federation.rounds.fast_codec import WORTH, CompiledKernels, kernels_for


def bits(kernels: Kernels, x: Float32, carried: Float32 | None, levels: int) -> list[bytes]:
    codes, scales = np.empty(len(x), dtype=np.int8), np.empty(-(-len(x) // BLOCK), dtype=np.float32)
    lost, out = np.empty_like(x), np.empty_like(x)
    kernels.quantise(x, carried, levels, Random16(3), codes, scales, lost)
    kernels.dequantise(codes, scales, out)
    return [array.tobytes() for array in (codes, scales, lost, out)]


@pytest.mark.parametrize("levels", [7, 127])
@pytest.mark.parametrize("size", [1, 5, BLOCK, PIECE + BLOCK + 7])
def test_the_same_bits(size: int, levels: int) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(size)
    for power in (-140, -106, -103, -20, 0, 126):
        x = (rng.normal(size=size).clip(-1.9, 1.9) * 2.0**power).astype("f4")
        x[BLOCK : 2 * BLOCK] = 0
        carried = (x * 0.05).astype("f4")
        for extra in (None, carried):
            assert bits(CompiledKernels(), x, extra, levels) == bits(NumpyKernels(), x, extra, levels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_alike(bad: float) -> None:
    pytest.importorskip("numba")
    x = np.ones(2 * BLOCK, dtype="f4")
    x[-1] = bad
    for kernels in (CompiledKernels(), NumpyKernels()):
        with pytest.raises(ValueError, match="tensor w: expected finite"):
            encode_difference({"w": x}, wire="int8", seed=1, kernels=kernels)


@pytest.mark.parametrize("wire", LOSSY)
def test_the_same_bytes_and_the_same_model(wire: str) -> None:
    pytest.importorskip("numba")
    step = {"w": np.random.default_rng(1).normal(size=(100, 99)).astype("f4"), "b": np.ones(3, dtype="f4")}
    data, residual = encode_difference(step, wire=wire, density=0.1, seed=1, entropy=False)
    fast, fast_residual = encode_difference(
        step, wire=wire, density=0.1, seed=1, entropy=False, kernels=CompiledKernels()
    )
    assert data == fast
    slow, quick = (
        decode_difference(data, step, wire=wire),
        decode_difference(data, step, wire=wire, kernels=CompiledKernels()),
    )
    for name in step:
        assert slow[name].tobytes() == quick[name].tobytes()
        assert residual[name].tobytes() == fast_residual[name].tobytes()


def test_small_models_are_left_to_numpy() -> None:
    assert isinstance(kernels_for(WORTH - 1), NumpyKernels)
