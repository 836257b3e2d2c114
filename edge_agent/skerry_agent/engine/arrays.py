"""What every request does with its arrays: check the values, copy them, keep the answer from being changed.

Four small steps that NumPy does in about eight microseconds, most of it in between its functions; ``_arrays.c`` does
them in one. It is compiled where there is a compiler when the agent is installed. Where there is none, the functions
below do the same, a little slower: :data:`COMPILED` says which, and one test suite runs over both.
"""

from __future__ import annotations

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
