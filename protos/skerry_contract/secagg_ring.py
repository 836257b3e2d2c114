"""Real vectors as elements of a ring in which masks hide them and sums cannot overflow.

A device's difference is weighted, clipped to ``bound`` per value, scaled so that the sum of ``devices`` of them stays
within half of the ring, and rounded at random to one of the two neighbouring integers, which keeps the mean unbiased.
The sum of the integers is exact. In front of the values lie counts whose sums the server may know (:data:`SUMS`), each
cut into digits so small that their sums do not overflow either; the weight is one of them.

Arithmetic on 24-bit elements is that on 32-bit ones: the highest byte is carried along and not sent.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array

#: uint16 or uint32, little endian.
RingVector = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Floats = npt.NDArray[np.floating]

#: Element sizes that there are.
RING_BITS = (16, 24, 32)
#: Counts in front of the values.
SUMS = (
    "weight",
    "examples",
    "steps",
    "loss",
    "validation_examples",
    "validation_correct",
    "validation_loss",
    "clipped_values",
    "within_norm",
)
#: Each count is below 2 to this power.
SUM_BITS = 40
#: Losses, multiplied by their examples, are counted in units of 1/1024.
LOSS_UNIT = 1024.0
#: Fewest steps from 0 to the bound that are still a number.
LEVELS = 8
#: Most values of a model: 4 GiB of float32.
VALUES = 1 << 30
_CHUNK = 1 << 16


class SumRangeError(ValueError):
    """A sum that no honest devices can have: at least one sent something else than its clipped difference."""


@dataclass(frozen=True)
class Ring:
    """Integers modulo 2^bits, for sums of at most ``devices`` vectors.

    Attributes:
        bits: One of :data:`RING_BITS`.
        devices: How many vectors are added at most.
    """

    bits: int
    devices: int

    def __post_init__(self) -> None:
        if self.bits not in RING_BITS:
            raise ValueError(f"a ring of {self.bits} bits; there are {RING_BITS}")
        if self.devices < 1 or self.levels < LEVELS:
            raise ValueError(f"{self.bits} bits are too few for the sum of {self.devices} vectors")

    @property
    def levels(self) -> int:
        """Integer that stands for the bound. Half of the ring stays empty, so that noise does not pass for a sum."""
        return ((1 << (self.bits - 1)) - 1) // (2 * self.devices)

    @property
    def element_bytes(self) -> int:
        """Size of an element on the wire."""
        return self.bits // 8

    @property
    def digit_bits(self) -> int:
        """Size of the digits of counts."""
        return self.bits - math.ceil(math.log2(self.devices + 1))

    @property
    def digits(self) -> int:
        """Elements per count."""
        return math.ceil(SUM_BITS / self.digit_bits)

    @property
    def header(self) -> int:
        """Elements in front of the values."""
        return self.digits * len(SUMS)

    def zeros(self, length: int) -> RingVector:
        """A vector of zeros."""
        return np.zeros(length, dtype="<u2") if self.bits == 16 else np.zeros(length, dtype="<u4")

    def elements(self, buffer: bytes | bytearray) -> RingVector:
        """A buffer seen as elements as they lie in memory."""
        return np.frombuffer(buffer, dtype="<u2") if self.bits == 16 else np.frombuffer(buffer, dtype="<u4")

    def pack(self, vector: RingVector) -> bytes:
        """Wire form: ``element_bytes`` per element, little endian."""
        if self.bits == 24:
            return np.ascontiguousarray(vector).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        return vector.tobytes()

    def unpack(self, data: bytes, length: int) -> RingVector:
        """Read ``length`` elements; read-only unless 24 bits wide.

        Raises:
            WireError: Another number of bytes.
        """
        if len(data) != length * self.element_bytes:
            raise WireError(
                "masked", expected=f"{length} elements of {self.element_bytes} bytes", got=f"{len(data)} bytes"
            )
        if self.bits == 24:
            wide = np.zeros((length, 4), dtype=np.uint8)
            wide[:, :3] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
            return wide.view("<u4").reshape(-1)
        return self.elements(data)

    def signed(self, vector: RingVector) -> npt.NDArray[np.signedinteger]:
        """Elements as integers around 0."""
        if self.bits == 24:
            return (vector.astype(np.uint32) << np.uint32(8)).view(np.int32) >> np.int32(8)
        return vector.view("<i2" if self.bits == 16 else "<i4")


@dataclass(frozen=True)
class VectorLayout:
    """Which tensors of a model make up the values, in which order.

    Attributes:
        shapes: Tensor name to shape.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: Mapping[str, Array], personal: str = "") -> VectorLayout:
        """The floating tensors of a model that do not stay on the devices.

        Args:
            model: State.
            personal: Shell patterns of names that stay, separated by newlines.

        Raises:
            ValueError: Nothing is left, or more than :data:`VALUES` values.
        """
        patterns = [line.strip() for line in personal.split("\n") if line.strip()]
        shapes = {
            name: tuple(array.shape)
            for name, array in model.items()
            if array.dtype.kind == "f" and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }
        layout = cls(shapes)
        if not 1 <= layout.size <= VALUES:
            raise ValueError(f"{layout.size} values to aggregate; 1 to {VALUES} are possible")
        return layout

    @property
    def size(self) -> int:
        """How many values."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flatten(self, difference: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """The values of a difference.

        Raises:
            WireError: A tensor is missing, has another shape, or is not finite.
        """
        vector = np.empty(self.size, dtype=np.float32)
        start = 0
        for name, shape in self.shapes.items():
            array = difference.get(name)
            if array is None or array.shape != shape or array.dtype.kind != "f":
                got = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise WireError(f"parameters[{name}]", expected=f"floating {shape}", got=got)
            stop = start + array.size
            vector[start:stop] = array.reshape(-1)
            start = stop
        if not np.isfinite(vector).all():
            raise WireError("parameters", expected="finite values", got="others")
        return vector

    def tensors(self, vector: Floats) -> dict[str, Floats]:
        """The values as tensors, views of ``vector``."""
        tensors: dict[str, Floats] = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            tensors[name] = vector[start:stop].reshape(shape)
            start = stop
        return tensors


def encode_vector(
    values: npt.NDArray[np.float32],
    counts: Mapping[str, int],
    ring: Ring,
    *,
    bound: float,
    factor: float,
    generator: np.random.Generator,
) -> RingVector:
    """What a device hides: counts, then values.

    Args:
        values: Finite.
        counts: Name of :data:`SUMS` to count; those that are missing are 0; ``clipped_values`` is counted here.
        ring: For as many devices as take part.
        bound: Values beyond it are clipped.
        factor: Share of the largest weight, 0 to 1; multiplies the values after clipping.
        generator: For the rounding; must be unpredictable for nobody's sake but the mean's.
    """
    vector = ring.zeros(ring.header + len(values))
    coded = vector[ring.header :]
    clipped = 0
    scale = factor * ring.levels / bound
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK].astype(np.float64)
        clipped += int(np.count_nonzero(np.abs(part) > bound))
        np.clip(part, -bound, bound, out=part)
        part *= scale
        part += generator.random(len(part))
        np.floor(part, out=part)
        np.clip(part, -ring.levels, ring.levels, out=part)  # a product may exceed the levels by one rounding
        coded[start : start + _CHUNK] = part.astype(np.int32).astype(vector.dtype)
    mask = (1 << ring.digit_bits) - 1
    for index, name in enumerate(SUMS):
        count = clipped if name == "clipped_values" else counts.get(name, 0)
        count = min(max(count, 0), (1 << SUM_BITS) - 1)
        for digit in range(ring.digits):
            vector[index * ring.digits + digit] = (count >> (digit * ring.digit_bits)) & mask
    return vector


def decode_sum(
    vector: RingVector, ring: Ring, *, bound: float, devices: int
) -> tuple[npt.NDArray[np.float64], dict[str, int]]:
    """The sum of ``devices`` vectors of :func:`encode_vector`.

    Returns:
        The sum of the values, each multiplied by its device's factor, and the sums of the counts.

    Raises:
        SumRangeError: No honest devices have such a sum.
    """
    signed = ring.signed(vector[ring.header :])
    most = devices * ring.levels
    if len(signed) and max(-int(signed.min()), int(signed.max())) > most:
        raise SumRangeError(f"a sum of values is beyond {devices} times the bound")
    keep = (1 << ring.bits) - 1
    largest = devices * ((1 << ring.digit_bits) - 1)
    counts: dict[str, int] = {}
    for index, name in enumerate(SUMS):
        digits = [int(element) & keep for element in vector[index * ring.digits : (index + 1) * ring.digits]]
        counts[name] = sum(value << (place * ring.digit_bits) for place, value in enumerate(digits))
        if max(digits) > largest or counts[name] >= devices << SUM_BITS:
            raise SumRangeError(f"the sum of {name} is beyond what {devices} devices can count")
    return signed.astype(np.float64) * (bound / ring.levels), counts


def rounding_norm(ring: Ring, *, bound: float, size: int) -> float:
    """L2 norm by which rounding may lengthen one device's difference, for the sensitivity of differential privacy."""
    return bound / ring.levels * math.sqrt(size)
