"""Weighted averaging of model states as they arrive, in the memory of one model.

``mean = sum(w_k * x_k) / sum(w_k)`` (McMahan et al., arXiv 1602.05629). Each update is added by one BLAS ``axpy`` and
can be forgotten; nothing grows with the number of devices.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array

#: Elements of one BLAS call: its counts are 32-bit integers.
_ELEMENTS = 1 << 30
#: Elements of a type without an axpy that are converted at a time.
_CONVERTED = 1 << 18


@functools.cache
def _axpys() -> dict[str, Any]:
    """BLAS by type. Imported by the first mean: the API process knows the strategies by name only and stays light."""
    from scipy.linalg import blas

    return {"float32": blas.saxpy, "float64": blas.daxpy}


class StreamingMean:
    """Weighted mean of states of one network; not for use by several threads."""

    def __init__(self, model: Mapping[str, Array]) -> None:
        """``model`` gives names, shapes and types; its values do not count."""
        self._model = {name: (array.shape, array.dtype) for name, array in model.items()}
        self._axpys = _axpys()
        self._sums: dict[str, npt.NDArray[Any]] = {}
        for name, array in model.items():
            # Types without an axpy (integers, float16) are few and small: summed in float64.
            dtype = array.dtype if array.dtype.name in self._axpys else np.dtype(np.float64)
            self._sums[name] = np.zeros(array.size, dtype=dtype)
        self._weight = 0.0
        self._unit = 0.0

    @property
    def weight(self) -> float:
        """Sum of the weights so far."""
        return self._weight

    def add(self, state: Mapping[str, Array], weight: float) -> None:
        """Add one state, already checked (:func:`skerry_server.federation.rounds.updates.check_state`).

        Args:
            state: Not changed; may be read-only.
            weight: Above 0, for example the number of examples.

        Raises:
            ValueError: A weight that is not positive and finite, or names that differ.
        """
        if not 0.0 < weight < float("inf"):
            raise ValueError(f"a weight must be positive, got {weight}")
        if state.keys() != self._sums.keys():
            raise ValueError("the state has other names than the model")
        self._unit = self._unit or weight
        scale = weight / self._unit  # sums stay of the size of the model, whatever the unit of the weights
        for name, total in self._sums.items():
            flat = np.ascontiguousarray(state[name]).reshape(-1)
            axpy = self._axpys.get(total.dtype.name) if flat.dtype == total.dtype else None
            for start in range(0, total.size, _ELEMENTS if axpy else _CONVERTED):
                if axpy is not None:
                    part = slice(start, start + _ELEMENTS)
                    axpy(flat[part], total[part], a=scale)
                else:
                    part = slice(start, start + _CONVERTED)
                    total[part] += scale * flat[part].astype(np.float64)
        self._weight += weight

    def result(self) -> dict[str, Array]:
        """The mean, in the order and with the types of the model; integers are rounded.

        Raises:
            ValueError: Nothing was added.
        """
        if self._weight == 0.0:
            raise ValueError("nothing was added")
        mean: dict[str, Array] = {}
        for name, (shape, dtype) in self._model.items():
            values = self._sums[name] * self._sums[name].dtype.type(self._unit / self._weight)
            if dtype.kind in "iub":
                values = np.rint(values)
            mean[name] = values.astype(dtype, copy=False).reshape(shape)
        return mean
