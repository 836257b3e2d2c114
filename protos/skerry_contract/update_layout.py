"""How the tensors of a model lie in an encoded difference; both sides derive it from the model that they share.

Floating-point tensors are quantised; all others travel as they are. Tensors are taken in the order of their names, so
that the order of a mapping decides nothing. A block is :data:`BLOCK` consecutive values of one tensor, in C order; the
last block of a tensor is shorter. Nothing about sizes is read from the wire: a fingerprint of the layout is, and must
be the reader's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from skerry_contract.limits import PARAMETER_BYTES, TENSOR_RANK, TENSORS
from skerry_contract.tensors import DTYPES, Array

Float32 = npt.NDArray[np.float32]

#: Values that share one scale.
BLOCK = 4096


@dataclass(frozen=True)
class Part:
    """One tensor.

    Attributes:
        name: Of the tensor.
        shape: Of the tensor.
        dtype: Of its difference: float64 for float64, float32 for other floating-point tensors, else the tensor's own.
        size: Number of values.
        start: Its first value within all values of the floating-point tensors; 0 for others.
        block: Its first block within all blocks; 0 for others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    size: int
    start: int
    block: int

    @property
    def is_float(self) -> bool:
        """Whether its difference is quantised."""
        return self.dtype.kind == "f"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as it is."""
        return self.size * self.dtype.itemsize

    @property
    def span(self) -> slice:
        """Its values within all values."""
        return slice(self.start, self.start + self.size)

    @property
    def blocks(self) -> slice:
        """Its blocks within all blocks."""
        return slice(self.block, self.block + blocks_of(self.size))


@dataclass(frozen=True)
class Layout:
    """See the module.

    Attributes:
        parts: Every tensor, by name.
        values: Values of the floating-point tensors together.
        blocks: Blocks of the floating-point tensors together.
    """

    parts: tuple[Part, ...]
    values: int
    blocks: int

    @classmethod
    def of(cls, tensors: Mapping[str, Array]) -> Layout:
        """The layout of a model or of a difference of it.

        Raises:
            ValueError: More than 4096 tensors, a type that cannot cross the wire, or more than 4 GiB.
        """
        if len(tensors) > TENSORS:
            raise ValueError(f"at most {TENSORS} tensors, got {len(tensors)}")
        parts: list[Part] = []
        values = blocks = total = 0
        for name in sorted(tensors):
            array = tensors[name]
            if array.dtype.name not in DTYPES or array.ndim > TENSOR_RANK:
                raise ValueError(f"tensor {name}: {array.dtype} of rank {array.ndim} cannot cross the wire")
            is_float = array.dtype.kind == "f"
            dtype = difference_type(array.dtype)
            parts.append(
                Part(name, array.shape, dtype, array.size, values if is_float else 0, blocks if is_float else 0)
            )
            total += parts[-1].nbytes
            if is_float:
                values += array.size
                blocks += blocks_of(array.size)
        if total > PARAMETER_BYTES:
            raise ValueError(f"tensors of at most {PARAMETER_BYTES} bytes together, got {total}")
        return cls(tuple(parts), values, blocks)

    @property
    def floats(self) -> tuple[Part, ...]:
        """The floating-point tensors."""
        return tuple(part for part in self.parts if part.is_float)

    @property
    def others(self) -> tuple[Part, ...]:
        """Tensors that travel as they are with every wire."""
        return tuple(part for part in self.parts if not part.is_float)

    @cached_property
    def fingerprint(self) -> bytes:
        """Eight bytes that differ for another layout: a mistake is told from garbage; no protection from malice."""
        digest = hashlib.blake2b(digest_size=8)
        for part in self.parts:
            digest.update(repr((part.name, part.dtype.name, part.shape)).encode())
        return digest.digest()


def difference_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Type of the difference of two tensors of a type: half precision would lose small steps."""
    return DTYPES["float32"] if dtype.name == "float16" else DTYPES[dtype.name]


def blocks_of(size: int) -> int:
    """Blocks of a tensor of ``size`` values."""
    return -(-size // BLOCK)
