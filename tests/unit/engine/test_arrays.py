"""The steps with a request's arrays: compiled and with NumPy, one suite over both."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from skerry_agent.engine import arrays
from skerry_agent.engine.arrays import Arrays, NumpyArrays

Floats = npt.NDArray[np.float32]


def compiled() -> Arrays:
    from skerry_agent.engine import _arrays

    return cast("Arrays", _arrays)


KINDS = [
    pytest.param(NumpyArrays(), id="numpy"),
    pytest.param(
        compiled() if arrays.COMPILED else NumpyArrays(),
        id="compiled",
        marks=pytest.mark.skipif(not arrays.COMPILED, reason="there was no compiler at installation"),
    ),
]
SHAPES = arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40)
VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Fails when the extension does not build any more, which the optional extension would hide."""
    headers = Path(__import__("sysconfig").get_path("include")) / "Python.h"
    assert arrays.COMPILED or not headers.exists() or shutil.which("gcc") is None


@pytest.mark.parametrize("kind", KINDS)
class TestArrays:
    @given(x=arrays_of.arrays(np.float32, SHAPES, elements=VALUES), bounds=st.tuples(VALUES, VALUES))
    @example(x=np.full(9, np.float32(0.1)), bounds=(0.1, 0.1))  # 0.1 as float64 is not 0.1 as float32
    def test_within_is_what_numpy_compares(self, kind: Arrays, x: Floats, bounds: tuple[float, float]) -> None:
        least, most = np.float32(bounds[0]), np.float32(bounds[1])
        assert kind.within(x, *bounds) is bool(((x >= least) & (x <= most)).all())

    @pytest.mark.parametrize("size", [1, 7, 4095, 4096, 4097, 16385, 150_528])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5, -1.5])
    def test_one_bad_value_is_found_wherever_it_is(self, kind: Arrays, size: int, bad: float) -> None:
        x = np.zeros(size, dtype=np.float32)
        assert kind.within(x, -1.0, 1.0)
        for index in {0, size // 2, size - 1}:
            x[index] = bad
            assert not kind.within(x, -1.0, 1.0)
            x[index] = 0

    def test_values_need_not_lie_side_by_side(self, kind: Arrays) -> None:
        x = np.zeros((8, 8), dtype=np.float32)
        x[1::2] = 9
        assert kind.within(x[::2], 0.0, 1.0)
        assert not kind.within(x.T[:, 1::2], 0.0, 1.0)

    def test_fill_copies_any_layout(self, kind: Arrays) -> None:
        source = np.arange(24, dtype=np.float32).reshape(4, 6)
        for part in (source, source[::2], source.T, source[:, ::-1]):
            target = np.full(part.shape, -1, dtype=np.float32)
            kind.fill(target, part)
            np.testing.assert_array_equal(target, part)

    def test_fill_refuses_another_shape_and_a_read_only_target(self, kind: Arrays) -> None:
        target = np.zeros((2, 3), dtype=np.float32)
        with pytest.raises(ValueError, match="shape"):
            kind.fill(target, np.ones((2, 4), dtype=np.float32))
        target.setflags(write=False)
        with pytest.raises(ValueError, match="read-only"):
            kind.fill(target, np.ones((2, 3), dtype=np.float32))
        assert not target.any()

    def test_copies_are_apart_from_what_they_copy(self, kind: Arrays) -> None:
        whole = np.arange(12, dtype=np.float32).reshape(3, 4)
        first, second = kind.copies((whole, whole.T))
        whole[:] = -1
        assert first.tolist() == np.arange(12, dtype=np.float32).reshape(3, 4).tolist()
        assert second.tolist() == np.arange(12, dtype=np.float32).reshape(3, 4).T.tolist()
        assert second.flags.c_contiguous
        assert kind.copies(()) == ()

    def test_sealed_arrays_cannot_be_changed(self, kind: Arrays) -> None:
        first, second = np.zeros(3, dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
        kind.seal(first, second)
        for array in (first, second):
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 1

    @pytest.mark.parametrize("wrong", [None, [1.0], np.zeros(3), np.zeros(3, dtype=np.int32), "text"])
    def test_anything_else_is_a_type_error(self, kind: Arrays, wrong: Floats) -> None:
        right = np.zeros(3, dtype=np.float32)
        with pytest.raises(TypeError, match="float32"):
            kind.within(wrong, 0.0, 1.0)
        with pytest.raises(TypeError, match="float32"):
            kind.fill(right, wrong)
        with pytest.raises(TypeError, match="float32"):
            kind.fill(wrong, right)
        with pytest.raises(TypeError):
            kind.copies((right, wrong))
        with pytest.raises(TypeError):
            kind.copies([right])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="float32"):
            kind.seal(right, wrong)

    @given(x=arrays_of.arrays(np.float32, SHAPES, elements=VALUES), offset=st.integers(0, 9), spare=st.integers(0, 9))
    def test_rows_of_bytes_wherever_they_begin(self, kind: Arrays, x: Floats, offset: int, spare: int) -> None:
        data = b"\xff" * offset + x.tobytes() + b"\xff" * spare
        rows, within = kind.rows_of(data, offset, x.shape, -1.0, 1.0)
        np.testing.assert_array_equal(rows, x)
        assert within is kind.within(x, -1.0, 1.0)
        assert rows.dtype == np.float32
        assert rows.flags.aligned
        assert rows.flags.c_contiguous
        assert rows.flags.writeable

    def test_many_rows_of_bytes(self, kind: Arrays) -> None:
        x = np.random.default_rng(0).uniform(-1, 1, (3, 224, 224)).astype(np.float32)
        for bad in (None, 0, 75_000, x.size - 1):
            values = x.copy()
            if bad is not None:
                values.flat[bad] = np.nan
            rows, within = kind.rows_of(b"abc" + values.tobytes(), 3, x.shape, -1.0, 1.0)
            np.testing.assert_array_equal(rows, values)
            assert within is (bad is None)

    @pytest.mark.parametrize(
        ("offset", "shape"),
        [(0, (5,)), (1, (4,)), (17, (0,)), (-1, (1,)), (0, (-1,)), (0, (-2, -2)), (0, (2**62, 4)), (0, (2**40, 2**40))],
    )
    def test_fewer_bytes_than_rows(self, kind: Arrays, offset: int, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="shorter"):
            kind.rows_of(bytes(16), offset, shape, 0.0, 1.0)
