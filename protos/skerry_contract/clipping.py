"""Clipping of a model update, and the grid on which clipped updates are summed and noised; the same on both sides.

What counts: every tensor of a floating type, parameters and buffers (BatchNorm's running statistics) alike, as ONE
vector. Tensors of other types (BatchNorm's ``num_batches_tracked``) are left out of what is sent and keep the values of
the model that the round started from: they count the device's batches, and nobody needs them to train.

The grid: a clipped difference is rounded to multiples of a power of two, ``2**-36`` of the clipping norm or finer.
Sums of such integers are exact, whatever their order, and noise that is added as an integer leaves nothing behind in
the low bits of a floating-point number from which the sum could be read (Mironov 2012, "On significance of the least
significant bits for differential privacy"). The difference is scaled to a bound that is smaller by what the rounding
can add, so the integer vector itself is never longer than the clipping norm.

>>> import numpy as np
>>> model = {"w": np.zeros(2, np.float32)}
>>> clipped, norm = clip_state({"w": np.float32([3.0, 4.0])}, model, 1.0)
>>> round(norm, 6), clipped["w"].round(4).tolist()
(5.0, [0.6000000238418579, 0.800000011920929])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array

Integers = npt.NDArray[np.int64]

#: Values per block: a block's float64 working copies stay in the cache of one core.
_BLOCK = 1 << 15
_STEP_BITS = 36
#: Relative slack for the rounding of the norm itself (float64, at most some 1e-13 for 1e9 values).
_SLACK = 1e-9


def counts(array: Array) -> bool:
    """Whether a tensor is part of the vector that is clipped and noised: floating types are."""
    return array.dtype.kind == "f"


def _blocks(array: Array, base: Array) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Differences of two tensors in float64, block by block."""
    flat, origin = np.ascontiguousarray(array).reshape(-1), np.ascontiguousarray(base).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, min(start + _BLOCK, flat.size))
        with np.errstate(over="ignore", invalid="ignore"):  # the norm says that it is not finite
            yield part, flat[part].astype(np.float64) - origin[part].astype(np.float64)


def difference_norm(state: Mapping[str, Array], model: Mapping[str, Array]) -> float:
    """L2 norm of ``state - model`` over all tensors of floating types, in float64; may be inf or NaN.

    Args:
        state: Names and shapes of the model.
        model: What training started from.
    """
    total = 0.0
    for name, base in model.items():
        if counts(base):
            for _, block in _blocks(state[name], base):
                with np.errstate(over="ignore", invalid="ignore"):
                    total += float(block @ block)
    return math.sqrt(total)


def clip_state(
    state: Mapping[str, Array], model: Mapping[str, Array], clip_norm: float
) -> tuple[dict[str, Array], float]:
    """Scale ``state - model`` down to an L2 norm of ``clip_norm``.

    The result has the model's types; its rounding may make the norm longer by some ``1e-7`` of the model's values. What
    must hold exactly uses :func:`clip_to_grid`.

    Args:
        state: Names, shapes and types of the model; not changed.
        model: What training started from.
        clip_norm: Above 0.

    Returns:
        The clipped state, with the model's values of tensors that do not count, and the norm before.

    Raises:
        ValueError: The norm is not finite.
    """
    norm = difference_norm(state, model)
    if not math.isfinite(norm):
        raise ValueError("the norm of the update is not finite")
    factor = min(1.0, clip_norm / norm) if norm else 1.0
    clipped: dict[str, Array] = {}
    for name, base in model.items():
        if not counts(base):
            clipped[name] = base
        elif factor == 1.0:
            clipped[name] = state[name]
        else:
            values = np.empty(base.size, dtype=base.dtype)
            origin = np.ascontiguousarray(base).reshape(-1)
            for part, block in _blocks(state[name], base):
                values[part] = origin[part].astype(np.float64) + factor * block
            clipped[name] = values.reshape(base.shape)
    return clipped, norm


@dataclass(frozen=True)
class Grid:
    """Multiples of ``step`` on which vectors of at most ``clip_norm`` are exact integers.

    Attributes:
        clip_norm: L2 bound of a vector, above 0.
        size: Values of the vector, at least 0.
        step: Distance of two points, a power of two.
    """

    clip_norm: float
    size: int
    step: float

    @classmethod
    def of(cls, model: Mapping[str, Array], clip_norm: float) -> Grid:
        """The grid for differences from a model.

        Raises:
            ValueError: The norm is not above 0 and finite.
        """
        if not 0.0 < clip_norm < math.inf:
            raise ValueError(f"a clipping norm must be positive, got {clip_norm}")
        size = sum(array.size for array in model.values() if counts(array))
        return cls(clip_norm, size, math.ldexp(1.0, math.frexp(clip_norm)[1] - 1 - _STEP_BITS))

    @property
    def rounding(self) -> float:
        """How much longer rounding to the nearest points can make a vector (L2)."""
        return math.sqrt(self.size) * self.step / 2


def clip_to_grid(
    state: Mapping[str, Array], model: Mapping[str, Array], grid: Grid, *, into: Mapping[str, Integers] | None = None
) -> tuple[dict[str, Integers], float]:
    """The clipped difference as integers, in multiples of the grid's step; its norm is at most the grid's.

    Args:
        state: Names and shapes of the model; not changed.
        model: What training started from.
        grid: Made of that model.
        into: Flat int64 sums that the integers are added to; without, new ones.

    Returns:
        The integers by name, flat, of the tensors that count, and the norm before clipping.

    Raises:
        ValueError: The norm is not finite; ``into`` is as it was.
    """
    norm = difference_norm(state, model)
    if not math.isfinite(norm):
        raise ValueError("the norm of the update is not finite")
    bound = max(0.0, grid.clip_norm * (1.0 - _SLACK) - grid.rounding)
    factor = (min(1.0, bound / norm) if norm else 1.0) / grid.step
    sums = dict(into) if into is not None else {}
    for name, base in model.items():
        if not counts(base):
            continue
        if into is None:
            sums[name] = np.zeros(base.size, dtype=np.int64)
        for part, block in _blocks(state[name], base):
            sums[name][part] += np.rint(factor * block).astype(np.int64)
    return sums, norm


def from_grid(
    sums: Mapping[str, Integers], model: Mapping[str, Array], grid: Grid, *, divisor: float = 1.0
) -> dict[str, Array]:
    """``model + sums * step / divisor`` in the model's types; tensors that do not count are the model's."""
    result: dict[str, Array] = {}
    for name, base in model.items():
        if not counts(base):
            result[name] = base.copy()
            continue
        values = np.empty(base.size, dtype=base.dtype)
        origin = np.ascontiguousarray(base).reshape(-1)
        for start in range(0, base.size, _BLOCK):
            part = slice(start, min(start + _BLOCK, base.size))
            values[part] = origin[part].astype(np.float64) + sums[name][part] * (grid.step / divisor)
        result[name] = values.reshape(base.shape)
    return result
