"""Which values a sparse update keeps, and how their places are written.

*Top-k* keeps the largest magnitudes of the whole update (arXiv:1704.05021); their places are written as the gaps
between them, low bits packed, high parts a byte each, with 255 for "255 more"; if many are kept, as a bit for each
value. *Random-k* deals the values into k
strata of equal size and keeps one of each, drawn from a seed: eight bytes say which.

Invariant: places ascend, are distinct, and lie below the number of values, or the bytes are refused.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skerry_contract.errors import WireError
from skerry_contract.update_layout import Float32

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]

#: A sample of this many magnitudes narrows down the threshold of a larger update; strata are drawn as many at a time.
_SAMPLE = 1 << 16


def kept(values: int, density: float) -> int:
    """How many of ``values`` a density keeps: at least one if there is one."""
    return min(values, max(1, round(values * density)))


def top_places(x: Float32, k: int) -> Places:
    """Places of the k largest magnitudes, ascending; among equal ones at the threshold the first.

    Args:
        x: float32 [n], finite.
        k: 0 to n.
    """
    if k == 0:
        return np.empty(0, dtype=np.int64)
    magnitudes = np.abs(x)
    candidates: Places | None = None
    if len(x) > 4 * _SAMPLE and k < len(x) // 4:
        # A stride of the values says about where the threshold lies; a lower one keeps all that may be above it.
        sample = magnitudes[:: len(x) // _SAMPLE]
        rank = min(len(sample) - 1, int(len(sample) * k / len(x) * 1.25) + 64)
        floor = np.partition(sample, len(sample) - 1 - rank)[len(sample) - 1 - rank]
        candidates = np.flatnonzero(magnitudes >= floor)
        if len(candidates) < k:
            candidates = None
    pool = magnitudes if candidates is None else magnitudes[candidates]
    threshold = np.partition(pool, len(pool) - k)[len(pool) - k]
    above = np.flatnonzero(pool > threshold)
    ties = np.flatnonzero(pool == threshold)[: k - len(above)]
    chosen = np.sort(np.concatenate([above, ties]))
    return chosen if candidates is None else candidates[chosen]


def random_places(seed: int, values: int, k: int) -> Places:
    """One place of each of k strata of ``values``, from a seed; int64 [k], ascending.

    Args:
        seed: 0 to 2 ** 64 - 1.
        values: Fewer than 2 ** 32.
        k: 0 to ``values``.
    """
    if k == 0:
        return np.empty(0, dtype=np.int64)
    generator = np.random.SFC64(seed)
    places = np.empty(k, dtype=np.int64)
    for start in range(0, k, _SAMPLE):
        own = places[start : start + _SAMPLE]
        bounds = np.arange(start, start + len(own) + 1, dtype=np.int64) * values // k
        words: npt.NDArray[np.uint64] = generator.random_raw(len(own))
        drawn = ((words >> np.uint64(32)) * np.diff(bounds).astype(np.uint64)) >> np.uint64(32)
        np.add(bounds[:-1], drawn.astype(np.int64), out=own)
    return places


def low_bits(values: int, k: int) -> int:
    """Low bits of a gap that are packed as they are: what is left of a mean gap is below 64."""
    return max(0, (values // max(k, 1)).bit_length() - 6)


def is_dense(values: int, k: int) -> bool:
    """Whether places are a bit for each value: above one in sixteen that is shorter, and a mask needs less memory."""
    return 16 * k > values


def write_mask(places: Places, values: int) -> UInt8:
    """A bit for each value; uint8 [ceil(values / 8)]."""
    mask = np.zeros(values, dtype=np.bool_)
    mask[places] = True
    return np.packbits(mask, bitorder="little")


def read_mask(packed: UInt8, *, values: int, k: int) -> Mask:
    """Read what :func:`write_mask` wrote; bool [values]; raises WireError unless it is k places."""
    bits = np.unpackbits(packed, bitorder="little")
    count = int(np.count_nonzero(bits[:values]))
    if count != k or bits[values:].any():
        raise WireError("update.places", expected=f"{k} of {values} bits", got=count)
    return bits[:values].view(np.bool_)


def write_gaps(places: Places, low: int) -> tuple[UInt8, UInt8]:
    """High parts of the gaps as bytes, and their low bits, packed.

    Args:
        places: Ascending.
        low: See :func:`low_bits`.
    """
    gaps = np.diff(places, prepend=-1) - 1
    full, rest = np.divmod(gaps >> low, 255)
    # Every gap ends with the one byte that is not 255.
    ends = np.cumsum(full + 1) - 1
    steps = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, dtype=np.uint8)
    steps[ends] = rest
    bits = ((gaps[:, None] >> np.arange(low)) & 1).astype(np.uint8)
    return steps, np.packbits(bits, bitorder="little")


def most_steps(values: int, k: int) -> int:
    """The most bytes of high parts that k places of ``values`` can need."""
    return k + (values >> low_bits(values, k)) // 255


def read_gaps(steps: UInt8, packed: UInt8, *, values: int, k: int) -> Places:
    """Read what :func:`write_gaps` wrote.

    Args:
        steps: uint8, at most :func:`most_steps`.
        packed: uint8 [ceil(k * low / 8)].
        values: All of them.
        k: Places.

    Returns:
        int64 [k], ascending.

    Raises:
        WireError: Not k places below ``values``.
    """
    is_end = steps != 255
    count = int(np.count_nonzero(is_end))
    if count != k or (len(steps) and not is_end[-1]):
        raise WireError("update.places", expected=f"{k} gaps", got=f"{count} in {len(steps)} bytes")
    # At most 255 * most_steps << low, some 2 ** 9 * values: no sum overflows.
    low = low_bits(values, k)
    gaps = np.diff(np.cumsum(steps, dtype=np.int64)[is_end], prepend=0) << low
    bits = np.unpackbits(packed, bitorder="little")
    if bits[k * low :].any():
        raise WireError("update.places", expected="zeros after the last gap", got="others")
    if low:
        gaps |= bits[: k * low].reshape(k, low) @ (np.int64(1) << np.arange(low, dtype=np.int64))
    places: Places = np.cumsum(gaps + 1) - 1
    if k and int(places[-1]) >= values:
        raise WireError("update.places", expected=f"places below {values}", got=int(places[-1]))
    return places
