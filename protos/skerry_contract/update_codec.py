"""An update as bytes: the difference of a model from the one before it, quantised, sparse, entropy coded.

A device sends what its training changed, the server may send what a round changed. What a lossy wire loses is handed
back as the *residual*, which the sender keeps and passes in with its next difference: error feedback (arXiv:1809.07599,
arXiv:1901.09847). Decoded + residual is the difference + the residual before, to rounding, whatever the wire.

================ =========================================================== ===============================
wire             values                                                      about bytes per value
================ =========================================================== ===============================
``float32``      as they are (float64 stays float64)                         4
``bfloat16``     rounded stochastically, bytes of equal weight together      1.4
``int8``         rounded stochastically in blocks of 4096 with a scale each  0.6 to 1
``int4``         likewise                                                    0.2 to 0.5
``topk``         the largest magnitudes, as int8, with their places          1.5 to 2 for each that is kept
``randomk``      one of each stratum, as int8; a seed says which             0.6 to 1 for each that is kept
================ =========================================================== ===============================

Rounding is unbiased. ``topk`` and ``randomk`` drop values and do not scale up the others: they need error feedback.
Tensors that are not floating-point travel absolutely and as they are with every wire. The header names version, wire
and a fingerprint of the layout; all sizes come from the reader's own model: no input makes a reader take more than five
times the memory of that model, and twice its own. NaN and infinity are never encoded and never decoded.

>>> import numpy as np
>>> model = {"w": np.zeros((2, 3), dtype=np.float32)}
>>> step = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
>>> data, residual = encode_difference(step, wire="int8", seed=1)
>>> decoded = decode_difference(data, model, wire="int8")
>>> np.allclose(decoded["w"] + residual["w"], step["w"])
True
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array
from skerry_contract.update_body import (
    Pieces,
    Source,
    not_finite,
    read_bfloat16,
    read_dense,
    read_sparse,
    write_bfloat16,
    write_dense,
    write_sparse,
)
from skerry_contract.update_layout import Float32, Layout, Part, difference_type
from skerry_contract.update_quantise import Kernels, NumpyKernels, Random16
from skerry_contract.update_streams import Reader

#: Every wire, by the name that settings and messages use; the header has its position.
WIRES = ("float32", "bfloat16", "int8", "int4", "topk", "randomk")
#: Wires that lose something: the sender keeps a residual.
LOSSY = WIRES[1:]
#: Wires that look at ``density``.
SPARSE = ("topk", "randomk")

_MAGIC = b"SKU"
_VERSION = 1
#: Magic, version, wire, fingerprint of the layout.
_HEADER = struct.Struct("<3sBB8s")
_KERNELS = NumpyKernels()


def difference(new: Mapping[str, Array], base: Mapping[str, Array]) -> dict[str, Array]:
    """``new - base`` of floating-point tensors (float32 of half precision), ``new`` itself of others.

    Raises:
        ValueError: The two are not of the same tensors.
    """
    _check_same(new, base)
    result: dict[str, Array] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in base.items():
            kind = difference_type(array.dtype)
            if kind.kind == "f":
                result[name] = np.asarray(np.subtract(new[name], array, dtype=kind))
            else:
                result[name] = new[name]
    return result


def apply_difference(base: Mapping[str, Array], difference: Mapping[str, Array]) -> dict[str, Array]:
    """``base + difference`` of floating-point tensors, the difference itself of others; in the order of ``base``.

    A sum that its type cannot hold becomes infinite: who takes differences from others looks at the result.

    Raises:
        ValueError: The two are not of the same tensors.
    """
    _check_same(difference, base)
    result: dict[str, Array] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in base.items():
            step = difference[name]
            if array.dtype.kind == "f":
                result[name] = np.asarray(np.add(array, step)).astype(array.dtype, copy=False)
            else:
                result[name] = step
    return result


def encode_difference(
    difference: Mapping[str, Array],
    *,
    wire: str,
    density: float = 0.01,
    seed: int,
    residual: Mapping[str, Array] | None = None,
    feedback: bool = True,
    entropy: bool = True,
    kernels: Kernels = _KERNELS,
) -> tuple[bytes, dict[str, Array]]:
    """Encode a difference.

    Args:
        difference: Named tensors, of which the floating-point ones are finite.
        wire: One of :data:`WIRES`.
        density: Share of the values that a sparse wire keeps, above 0, at most 1.
        seed: 0 to 2 ** 63 - 1, of the rounding and of random-k; another one for each sender and round.
        residual: What the encoding before this one lost: float32, by name; a missing tensor has lost nothing.
        feedback: Whether the new residual is wanted.
        entropy: Whether the codes are entropy coded where that is smaller: most of the time of a large update.
        kernels: Inner loops.

    Returns:
        The bytes, and the new residual: float32 tensors by name, of the floating-point ones; empty for "float32", or
        when it is not wanted.

    Raises:
        ValueError: An unknown wire, a density or seed out of bounds, a residual of other shapes, tensors that cannot
            cross the wire, or a floating-point value that is not finite or above 2 ** 127.
    """
    if wire not in WIRES:
        raise ValueError(f"wire: expected one of {', '.join(WIRES)}, got {wire}")
    if not 0 < density <= 1:
        raise ValueError(f"density: expected above 0, at most 1, got {density}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed: expected 0 to 2 ** 63 - 1, got {seed}")
    layout = Layout.of(difference)
    carried = _check_residual(residual or {}, layout)
    pieces: Pieces = [_HEADER.pack(_MAGIC, _VERSION, WIRES.index(wire), layout.fingerprint)]
    for part in layout.others:
        pieces.append(difference[part.name].astype(part.dtype, copy=False).tobytes())
    if wire == "float32":
        pieces += [_plain(difference[part.name], carried.get(part.name), part) for part in layout.floats]
        return b"".join(pieces), {}
    with np.errstate(over="ignore", invalid="ignore"):
        values = {part.name: _single(difference[part.name]) for part in layout.floats}
        source = Source(layout, values, carried, entropy, kernels)
        if wire == "bfloat16":
            body, lost = write_bfloat16(source, Random16(seed))
        elif wire in SPARSE:
            body, lost = write_sparse(source, wire, density, seed)
        else:
            body, lost = write_dense(source, wire, Random16(seed), feedback=feedback)
    data = b"".join([*pieces, *body])
    return data, _named(lost, layout) if feedback else {}


def decode_difference(
    data: bytes,
    like: Mapping[str, Array],
    *,
    wire: str,
    kernels: Kernels = _KERNELS,
    out: Float32 | None = None,
) -> dict[str, Array]:
    """Read what :func:`encode_difference` wrote.

    Args:
        data: From the wire, not trusted.
        like: The model that it is a difference of: names, shapes and types.
        wire: What was agreed on; another one is refused.
        kernels: Inner loops.
        out: float32 [values of all floating-point tensors], overwritten, that the decoded tensors become views of; for
            a reader of many updates, since it takes the system as long to hand out clean memory as to fill it. None
            takes new memory. "float32" does not use it.

    Returns:
        Finite tensors in the order of ``like``: float32, or float64 where the model has that; others as in the model.

    Raises:
        WireError: Anything but such an update of such a model.
        ValueError: ``wire`` is unknown, ``like`` cannot cross the wire, or ``out`` has another shape.
    """
    if wire not in WIRES:
        raise ValueError(f"wire: expected one of {', '.join(WIRES)}, got {wire}")
    layout = Layout.of(like)
    if out is not None and (out.shape != (layout.values,) or out.dtype != np.float32):
        raise ValueError(f"out: expected float32 ({layout.values},), got {out.dtype} {out.shape}")
    reader = Reader(data)
    magic, version, position, fingerprint = _HEADER.unpack(reader.take(_HEADER.size, "update.header"))
    if (magic, version) != (_MAGIC, _VERSION):
        raise WireError("update.header", expected=f"an update of version {_VERSION}", got=magic + bytes([version]))
    if position != WIRES.index(wire):
        raise WireError("update.wire", expected=wire, got=WIRES[position] if position < len(WIRES) else position)
    if fingerprint != layout.fingerprint:
        raise WireError("update.layout", expected="the tensors of this model", got="names, types or shapes of another")
    decoded = {part.name: _read_plain(reader, part) for part in layout.others}
    if wire == "float32":
        decoded |= {part.name: _read_plain(reader, part) for part in layout.floats}
    else:
        flat = np.empty(layout.values, dtype=np.float32) if out is None else out
        if wire == "bfloat16":
            read_bfloat16(reader, layout, flat)
        elif wire in SPARSE:
            read_sparse(reader, layout, wire, kernels, flat)
        else:
            read_dense(reader, layout, wire, kernels, flat)
        decoded |= _named(flat, layout)
    reader.finish()
    return {name: decoded[name].astype(difference_type(array.dtype), copy=False) for name, array in like.items()}


def _single(array: Array) -> Float32:
    single: Float32 = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    return single


def _named(flat: Float32, layout: Layout) -> dict[str, Array]:
    return {part.name: flat[part.span].reshape(part.shape) for part in layout.floats}


def _plain(array: Array, carried: Float32 | None, part: Part) -> bytes:
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.astype(part.dtype) if carried is None else np.add(array, carried.reshape(part.shape))
    if not np.isfinite(total).all():
        raise not_finite(part)
    return total.astype(part.dtype, copy=False).tobytes()


def _read_plain(reader: Reader, part: Part) -> Array:
    field = f"update.tensor {part.name[:80]!r}"
    array = np.frombuffer(reader.take(part.nbytes, field), dtype=part.dtype).reshape(part.shape).copy()
    if part.is_float and not np.isfinite(array).all():
        raise WireError(field, expected="finite values", got="others")
    if part.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise WireError(field, expected="bytes 0 and 1 for bool", got="other values")
    return array


def _check_residual(residual: Mapping[str, Array], layout: Layout) -> dict[str, Float32]:
    shapes = {part.name: part.shape for part in layout.floats}
    for name, array in residual.items():
        if name not in shapes or array.shape != shapes[name] or array.dtype != np.float32:
            expected = f"float32 {shapes[name]}" if name in shapes else "a floating-point tensor of the difference"
            raise ValueError(f"residual {name}: expected {expected}, got {array.dtype} {array.shape}")
    return {name: _single(array) for name, array in residual.items()}


def _check_same(one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    if one.keys() != other.keys():
        raise ValueError(f"tensors: expected those of the model, differing: {sorted(one.keys() ^ other.keys())[:5]}")
    for name, array in other.items():
        if one[name].shape != array.shape or (one[name].dtype.kind == "f") != (array.dtype.kind == "f"):
            raise ValueError(
                f"tensor {name}: expected {array.dtype} {array.shape}, got {one[name].dtype} {one[name].shape}"
            )
