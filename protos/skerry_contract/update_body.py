"""The floating-point values of an update, by wire: what follows the header and the tensors that travel as they are.

Every writer returns pieces to be joined and what was lost; every reader takes the pieces from a
:class:`~skerry_contract.update_streams.Reader` and writes all values into one float32 array. The reader's layout bounds
every size before memory is taken.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skerry_contract.errors import WireError
from skerry_contract.update_layout import Float32, Layout, Part, blocks_of
from skerry_contract.update_quantise import (
    LARGEST,
    LEVELS,
    Int8,
    Kernels,
    Random16,
    join_bfloat16,
    largest_scale,
    pack_nibbles,
    round_bfloat16,
    unpack_nibbles,
)
from skerry_contract.update_sparse import (
    Mask,
    Places,
    is_dense,
    kept,
    low_bits,
    most_steps,
    random_places,
    read_gaps,
    read_mask,
    top_places,
    write_gaps,
    write_mask,
)
from skerry_contract.update_streams import Reader, write_stream

Pieces = list[bytes | memoryview]

#: Kept values; bytes of the high parts of the gaps.
_TOP = struct.Struct("<QQ")
#: Kept values; seed of their places.
_RANDOM = struct.Struct("<QQ")


@dataclass(frozen=True)
class Source:
    """What is written.

    Attributes:
        layout: Of the tensors.
        values: Floating-point tensors, float32 [n] each.
        carried: What the encoding before lost of them; a missing tensor lost nothing.
        entropy: Whether streams are entropy coded where that is smaller.
        kernels: Inner loops.
    """

    layout: Layout
    values: Mapping[str, Float32]
    carried: Mapping[str, Float32]
    entropy: bool
    kernels: Kernels

    def joined(self) -> Float32:
        """Values plus what was carried, as one array that may be changed; raises ValueError unless all are finite."""
        flat = np.empty(self.layout.values, dtype=np.float32)
        for part in self.layout.floats:
            target = flat[part.span]
            if (carried := self.carried.get(part.name)) is None:
                np.copyto(target, self.values[part.name])
            else:
                np.add(self.values[part.name], carried, out=target)
            if not is_finite(target):
                raise not_finite(part)
        return flat


def is_finite(values: Float32) -> bool:
    """Whether all magnitudes are at most 2 ** 127."""
    # A maximum of NaN is NaN, and no comparison with NaN holds.
    return not len(values) or bool(values.max() <= LARGEST and values.min() >= -LARGEST)


def not_finite(part: Part) -> ValueError:
    """The error of a tensor that cannot be written."""
    return ValueError(f"tensor {part.name}: expected finite values of at most 2 ** 127")


def write_dense(source: Source, wire: str, random: Random16, *, feedback: bool) -> tuple[Pieces, Float32]:
    """int8 or int4: scales, then codes."""
    layout = source.layout
    codes, scales = np.empty(layout.values, dtype=np.int8), np.empty(layout.blocks, dtype=np.float32)
    lost = np.empty(layout.values if feedback else 0, dtype=np.float32)
    for part in layout.floats:
        source.kernels.quantise(
            source.values[part.name],
            source.carried.get(part.name),
            LEVELS[wire],
            random,
            codes[part.span],
            scales[part.blocks],
            lost[part.span] if feedback else None,
        )
        if not np.isfinite(scales[part.blocks]).all():
            raise not_finite(part)
    return _write_codes(codes, scales, nibbles=wire == "int4", entropy=source.entropy), lost


def read_dense(reader: Reader, layout: Layout, wire: str, kernels: Kernels, out: Float32) -> None:
    """Read what :func:`write_dense` wrote into ``out``, float32 [layout.values]; raises WireError."""
    codes, scales = _read_codes(reader, layout.values, layout.blocks, LEVELS[wire])
    for part in layout.floats:
        kernels.dequantise(codes[part.span], scales[part.blocks], out[part.span])


def write_bfloat16(source: Source, random: Random16) -> tuple[Pieces, Float32]:
    """High bytes, then low bytes: signs and exponents are alike, and compress beside each other."""
    lost = source.joined()
    high, low = round_bfloat16(lost, random)
    return [piece for plane in (high, low) for piece in write_stream(plane, entropy=source.entropy)], lost


def read_bfloat16(reader: Reader, layout: Layout, out: Float32) -> None:
    """Read what :func:`write_bfloat16` wrote into ``out``, float32 [layout.values]; raises WireError."""
    high, low = reader.stream(layout.values, "update.high"), reader.stream(layout.values, "update.low")
    join_bfloat16(high, low, out)
    if not is_finite(out):
        raise WireError("update.values", expected="finite values", got="others")


def write_sparse(source: Source, wire: str, density: float, seed: int) -> tuple[Pieces, Float32]:
    """topk or randomk: how many, where, and their values as int8 with a scale for each 4096."""
    flat, entropy = source.joined(), source.entropy
    k = kept(len(flat), density)
    if wire == "randomk":
        places = random_places(seed, len(flat), k)
        pieces: Pieces = [_RANDOM.pack(k, seed)]
    else:
        places = top_places(flat, k)
        pieces = _write_places(places, len(flat), entropy=entropy)
    chosen = flat[places]
    codes, scales = np.empty(k, dtype=np.int8), np.empty(blocks_of(k), dtype=np.float32)
    lost = np.empty_like(chosen)
    # Of the same seed, but not the numbers that chose the places.
    random = Random16(seed + (1 << 64))
    source.kernels.quantise(chosen, None, LEVELS["int8"], random, codes, scales, lost)
    flat[places] = lost
    return [*pieces, *_write_codes(codes, scales, nibbles=False, entropy=entropy)], flat


def read_sparse(reader: Reader, layout: Layout, wire: str, kernels: Kernels, out: Float32) -> None:
    """Read what :func:`write_sparse` wrote into ``out``, float32 [layout.values]; raises WireError."""
    header = _RANDOM if wire == "randomk" else _TOP
    k, second = header.unpack(reader.take(header.size, "update.kept"))
    if not min(1, layout.values) <= k <= layout.values:
        raise WireError("update.kept", expected=f"1 to {layout.values} values", got=k)
    where: Places | Mask
    if wire == "randomk":
        where = random_places(second, layout.values, k)
    else:
        where = _read_places(reader, layout.values, k, second)
    codes, scales = _read_codes(reader, k, blocks_of(k), LEVELS["int8"])
    chosen = np.empty(k, dtype=np.float32)
    kernels.dequantise(codes, scales, chosen)
    out[:] = 0
    out[where] = chosen


def _write_places(places: Places, values: int, *, entropy: bool) -> Pieces:
    k = len(places)
    if is_dense(values, k):
        return [_TOP.pack(k, 0), *write_stream(write_mask(places, values), entropy=entropy)]
    steps, packed = write_gaps(places, low_bits(values, k))
    return [_TOP.pack(k, len(steps)), *write_stream(steps, entropy=entropy), packed.tobytes()]


def _read_places(reader: Reader, values: int, k: int, steps: int) -> Places | Mask:
    if is_dense(values, k):
        if steps:
            raise WireError("update.places", expected="a mask without gaps", got=f"{steps} bytes of gaps")
        return read_mask(reader.stream(-(-values // 8), "update.places"), values=values, k=k)
    if not k <= steps <= most_steps(values, k):
        raise WireError("update.places", expected=f"{k} to {most_steps(values, k)} bytes of gaps", got=steps)
    high = reader.stream(steps, "update.places")
    packed = np.frombuffer(reader.take(-(-k * low_bits(values, k) // 8), "update.places"), dtype=np.uint8)
    return read_gaps(high, packed, values=values, k=k)


def _write_codes(codes: Int8, scales: Float32, *, nibbles: bool, entropy: bool) -> Pieces:
    data = pack_nibbles(codes) if nibbles else codes.view(np.uint8)
    return [scales.astype("<f4", copy=False).tobytes(), *write_stream(data, entropy=entropy)]


def _read_codes(reader: Reader, count: int, blocks: int, levels: int) -> tuple[Int8, Float32]:
    """Codes within ±levels and scales that keep their products finite; raises WireError."""
    scales = np.frombuffer(reader.take(4 * blocks, "update.scales"), dtype="<f4").astype(np.float32)
    # NaN is between no two numbers.
    if not ((scales >= 0) & (scales <= largest_scale(levels))).all():
        raise WireError("update.scales", expected=f"0 to {largest_scale(levels):g}", got="others")
    if levels == LEVELS["int4"]:
        packed = reader.stream(-(-count // 2), "update.codes")
        if count % 2 and packed[-1] >> 4 != 8:
            raise WireError("update.codes", expected="8 in the last half byte", got=int(packed[-1] >> 4))
        codes = unpack_nibbles(packed, count)
    else:
        codes = reader.stream(count, "update.codes").view(np.int8)
    if count and int(codes.min()) < -levels:
        raise WireError("update.codes", expected=f"-{levels} to {levels}", got=int(codes.min()))
    return codes, scales
