"""What every request does with its arrays: check the values, copy them, keep the answer from being changed.

Four small steps that NumPy does in about eight microseconds, most of it in between its functions; ``_arrays.c`` does
them in one. It is compiled where there is a compiler when the agent is installed. Where there is none, the functions
below do the same, a little slower: :data:`COMPILED` says which, and one test suite runs over both.
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import numpy as np

from skerry_agent.engine.backend import Floats


class Arrays(Protocol):
    """The steps. All arrays are float32; anything else is a TypeError."""

    def within(self, array: Floats, least: float, most: float, /) -> bool:
        """Whether every value lies in [least, most], both as float32; False if one is NaN, True for no values."""
        ...

    def fill(self, target: Floats, source: Floats, /) -> None:
        """Copy ``source`` into ``target``; raises ValueError for a shape that does not fit."""
        ...

    def copies(self, arrays: tuple[Floats, ...], /) -> tuple[Floats, ...]:
        """A copy of each, C order."""
        ...

    def seal(self, *arrays: Floats) -> None:
        """Make them read-only."""
        ...

    def rows_of(
        self, data: bytes, offset: int, shape: tuple[int, ...], least: float, most: float, /
    ) -> tuple[Floats, bool]:
        """A copy, aligned, of the little-endian values of ``shape`` at ``offset`` of ``data``; and :meth:`within`.

        Raises:
            ValueError: There are not so many.
        """
        ...


class NumpyArrays:
    """The steps with NumPy."""

    def within(self, array: Floats, least: float, most: float, /) -> bool:
        """See :class:`Arrays`."""
        _check(array)
        flat = array.ravel()  # a view of contiguous values
        if not flat.size:
            return True
        # argmin and argmax are the fastest reductions of NumPy, and both find a NaN if there is one.
        smallest, largest = flat[flat.argmin()], flat[flat.argmax()]
        return bool(smallest >= np.float32(least) and largest <= np.float32(most))

    def fill(self, target: Floats, source: Floats, /) -> None:
        """See :class:`Arrays`."""
        _check(target)
        _check(source)
        np.copyto(target, source)

    def copies(self, arrays: tuple[Floats, ...], /) -> tuple[Floats, ...]:
        """See :class:`Arrays`."""
        if not isinstance(arrays, tuple):
            raise TypeError("expected a tuple of arrays")
        for array in arrays:
            _check(array)
        return tuple([array.copy() for array in arrays])

    def seal(self, *arrays: Floats) -> None:
        """See :class:`Arrays`."""
        for array in arrays:
            _check(array)
            array.setflags(write=False)

    def rows_of(
        self, data: bytes, offset: int, shape: tuple[int, ...], least: float, most: float, /
    ) -> tuple[Floats, bool]:
        """See :class:`Arrays`."""
        count = math.prod(shape)
        if min(shape, default=0) < 0 or not 0 <= offset <= len(data) - 4 * count:
            raise ValueError("the data are shorter than the shape")
        values = np.frombuffer(data, dtype="<f4", count=count, offset=offset) if count else np.zeros(0, np.float32)
        array: Floats = np.array(values, dtype=np.float32).reshape(shape)
        return array, self.within(array, least, most)


def _check(array: object) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.type is not np.float32:
        raise TypeError("expected a float32 array")


def _best() -> tuple[Arrays, bool]:
    try:
        from skerry_agent.engine import _arrays
    except ImportError:
        return NumpyArrays(), False
    return cast("Arrays", _arrays), True


_ARRAYS, COMPILED = _best()
within, fill, copies, seal = _ARRAYS.within, _ARRAYS.fill, _ARRAYS.copies, _ARRAYS.seal
rows_of = _ARRAYS.rows_of
