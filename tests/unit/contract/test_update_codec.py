"""Updates as bytes: round trips of every wire, error feedback, and refusal of whatever is not such an update."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array
from skerry_contract.update_codec import (
    LOSSY,
    SPARSE,
    WIRES,
    apply_difference,
    decode_difference,
    difference,
    encode_difference,
)

State = dict[str, Array]
Float64 = npt.NDArray[np.float64]

#: More than a block, a rest of a block, no dimension, no elements, other types.
SHAPES = {
    "weight": ((70, 60), "f4"),
    "bias": ((5,), "f4"),
    "scalar": ((), "f4"),
    "empty": ((0, 4), "f4"),
    "half": ((9,), "f2"),
    "double": ((3, 3), "f8"),
}


def random_state(seed: int, scale: float = 1.0) -> State:
    rng = np.random.default_rng(seed)
    state: State = {
        name: np.asarray(rng.standard_t(3, size=shape) * scale).astype(dtype) for name, (shape, dtype) in SHAPES.items()
    }
    return state | {"counted": np.array(seed), "mask": np.array([[True, False], [False, seed % 2 == 0]])}


def norm(state: Mapping[str, Array]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(a, dtype="f8")) for a in state.values() if a.dtype.kind == "f")))


def plus(one: Mapping[str, Array], other: Mapping[str, Array], sign: int = 1) -> dict[str, Float64]:
    """Of floating-point tensors, in double precision; a missing one is zero."""
    floats = [name for name, array in one.items() if array.dtype.kind == "f"]
    return {
        name: np.asarray(one[name].astype("f8") + sign * np.asarray(other.get(name, 0), dtype="f8")) for name in floats
    }


MODEL = random_state(0)
STEP = difference(random_state(1), MODEL)


@pytest.mark.parametrize("wire", WIRES)
def test_names_shapes_types_and_other_tensors_arrive(wire: str) -> None:
    data, residual = encode_difference(STEP, wire=wire, seed=3)
    decoded = decode_difference(data, MODEL, wire=wire)
    assert list(decoded) == list(MODEL)
    assert {n: (a.dtype, a.shape) for n, a in decoded.items()} == {n: (a.dtype, a.shape) for n, a in STEP.items()}
    assert decoded["counted"] == STEP["counted"] == 1
    assert decoded["mask"].tolist() == STEP["mask"].tolist()
    assert set(residual) == (set(SHAPES) if wire in LOSSY else set())
    assert all(array.dtype == np.float32 and array.shape == STEP[name].shape for name, array in residual.items())


#: Relative L2 error that each wire may have on values of a heavy-tailed distribution, and bytes per value.
@pytest.mark.parametrize(
    ("wire", "density", "error", "size"),
    [
        ("float32", 0.01, 0.0, 4.1),
        ("bfloat16", 0.01, 2.0**-8, 1.6),
        ("int8", 0.01, 0.08, 0.85),
        ("int4", 0.01, 1.1, 0.4),
        ("topk", 0.01, 0.97, 0.05),
        ("topk", 0.5, 0.4, 0.7),
        ("topk", 1.0, 0.08, 0.9),
        ("randomk", 0.5, 0.85, 0.5),
    ],
)
def test_error_and_size_by_wire(wire: str, density: float, error: float, size: float) -> None:
    step = {"weight": np.random.default_rng(8).standard_t(3, size=40_000).astype("f4")}
    data, _ = encode_difference(step, wire=wire, density=density, seed=3)
    decoded = decode_difference(data, step, wire=wire)
    assert norm(plus(decoded, step, -1)) <= error * norm(step)
    assert len(data) <= size * 40_000


@pytest.mark.parametrize("scale", [1e-44, 1e-33, 1e-31, 1e-3, 1e30, 2.0**127])
@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_every_value_is_within_one_step_of_its_block(wire: str, scale: float) -> None:
    values = np.random.default_rng(5).uniform(-1, 1, size=10_000) * scale
    values[4096:8192] = 0
    step = {"w": values.astype("f4")}
    data, residual = encode_difference(step, wire=wire, seed=1)
    decoded = decode_difference(data, step, wire=wire)["w"]
    for block in (slice(0, 4096), slice(4096, 8192), slice(8192, None)):
        largest = float(np.abs(step["w"][block]).max())
        bound = 1.0001 * largest / (127 if wire == "int8" else 7) + 2.0**-104
        assert np.abs(decoded[block] - step["w"][block]).max() <= bound
    assert np.isfinite(decoded).all()
    both = plus({"w": decoded}, residual)["w"]
    np.testing.assert_allclose(both, step["w"].astype("f8"), rtol=0, atol=scale * 1e-6)


@pytest.mark.parametrize("density", [0.003, 0.2])
@pytest.mark.parametrize("wire", WIRES)
def test_decoded_and_residual_add_up_over_rounds(wire: str, density: float) -> None:
    delivered: dict[str, Float64] = {}
    asked: dict[str, Float64] = {}
    residual: State = {}
    for seed in range(12):
        step = difference(random_state(seed), MODEL)
        total = plus(step, residual)
        data, residual = encode_difference(step, wire=wire, density=density, seed=seed, residual=residual)
        decoded = decode_difference(data, MODEL, wire=wire)
        for name, array in plus(decoded, residual).items():
            np.testing.assert_allclose(array, total[name], rtol=1e-5, atol=1e-5)
        delivered, asked = plus(decoded, delivered), plus(step, asked)
    # Nothing was lost on the way: what is missing is the residual of the end, which does not grow with the rounds.
    for name in SHAPES:
        left = np.asarray(residual.get(name, 0), dtype="f8")
        np.testing.assert_allclose(delivered[name] + left, asked[name], rtol=1e-4, atol=1e-4)


def test_feedback_delivers_what_a_sparse_wire_drops() -> None:
    step: State = {"w": np.linspace(0.1, 1, 100, dtype="f4")}
    totals = {}
    for feedback in (True, False):
        delivered = np.zeros(100)
        residual: State = {}
        for seed in range(100):
            data, residual = encode_difference(
                step, wire="topk", density=0.05, seed=seed, residual=residual, feedback=feedback
            )
            delivered = plus(decode_difference(data, step, wire="topk"), {"w": delivered})["w"]
        totals[feedback] = delivered / 100
    assert float(np.abs(plus({"w": totals[True]}, step, -1)["w"]).max()) < 0.4
    assert np.count_nonzero(totals[False]) == 5


@pytest.mark.parametrize("wire", LOSSY)
def test_the_seed_alone_decides(wire: str) -> None:
    first, lost = encode_difference(STEP, wire=wire, seed=7)
    again, lost_again = encode_difference(dict(reversed(STEP.items())), wire=wire, seed=7)
    assert first == again
    assert all(lost[name].tobytes() == lost_again[name].tobytes() for name in lost)
    assert encode_difference(STEP, wire=wire, seed=8)[0] != first
    assert encode_difference(STEP, wire=wire, seed=7, feedback=False) == (first, {})


def test_raw_and_coded_streams_decode_alike_into_memory_of_the_reader() -> None:
    out = np.empty(sum(array.size for array in STEP.values() if array.dtype.kind == "f"), dtype="f4")
    for wire in LOSSY:
        coded, raw = (encode_difference(STEP, wire=wire, seed=7, entropy=entropy)[0] for entropy in (True, False))
        assert len(coded) <= len(raw)
        one, other = decode_difference(coded, MODEL, wire=wire), decode_difference(raw, MODEL, wire=wire, out=out)
        assert all(one[name].tobytes() == other[name].tobytes() for name in MODEL)
        assert np.shares_memory(other["weight"], out)
    with pytest.raises(ValueError, match="out: expected float32"):
        decode_difference(coded, MODEL, wire="randomk", out=out[1:])


@given(
    wire=st.sampled_from(WIRES),
    density=st.floats(1e-6, 1),
    size=st.integers(0, 9000),
    exponent=st.integers(-130, 120),
    seed=st.integers(0, (1 << 63) - 1),
)
@settings(max_examples=50, deadline=None, database=None)
def test_any_size_and_magnitude(wire: str, density: float, size: int, exponent: int, seed: int) -> None:
    values = np.random.default_rng(size).normal(size=size) * 2.0**exponent
    step = {"w": values.astype("f4")}
    data, residual = encode_difference(step, wire=wire, density=density, seed=seed)
    decoded = decode_difference(data, step, wire=wire)
    atol = 2.0 ** (exponent - 18)
    np.testing.assert_allclose(plus(decoded, residual)["w"], step["w"].astype("f8"), rtol=0, atol=atol)
    if wire in SPARSE:
        assert np.count_nonzero(decoded["w"]) <= max(1, round(size * density))


def test_difference_and_its_application() -> None:
    base = {"w": np.array([1.0, 2.0], "f4"), "h": np.array([1.0], "f2"), "n": np.array([7])}
    new = {"w": np.array([1.5, 0.0], "f4"), "h": np.array([1.5], "f2"), "n": np.array([9])}
    step = difference(new, base)
    assert step["w"].tolist() == [0.5, -2.0]
    assert step["h"].dtype == np.float32
    assert step["n"].tolist() == [9]
    applied = apply_difference(base, step)
    assert {n: (a.tolist(), a.dtype) for n, a in applied.items()} == {n: (a.tolist(), a.dtype) for n, a in new.items()}
    with pytest.raises(ValueError, match=r"differing: .'n'"):
        difference({"w": base["w"], "h": base["h"]}, base)
    with pytest.raises(ValueError, match="tensor w: expected float32"):
        apply_difference(base, step | {"w": np.zeros(3, "f4")})


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encoded(wire: str, bad: float) -> None:
    weight = STEP["weight"].copy()
    weight[-1, 3] = bad
    with pytest.raises(ValueError, match="tensor weight: expected finite"):
        encode_difference(STEP | {"weight": weight}, wire=wire, density=0.5, seed=1)
    if wire in LOSSY:
        with pytest.raises(ValueError, match="tensor bias: expected finite"):
            encode_difference(STEP, wire=wire, seed=1, residual={"bias": np.full(5, bad, "f4")})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wire": "int2"}, "wire: expected one of"),
        ({"density": 0.0}, "density"),
        ({"density": float("nan")}, "density"),
        ({"seed": -1}, "seed"),
        ({"residual": {"bias": np.zeros(4, "f4")}}, "residual bias: expected float32 .5,., got float32 .4,."),
        ({"residual": {"counted": np.zeros((), "f4")}}, "residual counted: expected a floating-point tensor"),
        ({"residual": {"bias": np.zeros(5)}}, "residual bias: .* got float64"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    right: dict[str, object] = {"wire": "int8", "density": 0.1, "seed": 1}
    with pytest.raises(ValueError, match=message):
        encode_difference(STEP, **(right | arguments))  # type: ignore[arg-type]  # wrong on purpose


def test_another_wire_version_or_model_is_named() -> None:
    data, _ = encode_difference(STEP, wire="int8", seed=1)
    with pytest.raises(WireError, match=r"update\.wire: expected int4, got 'int8'"):
        decode_difference(data, MODEL, wire="int4")
    with pytest.raises(WireError, match="an update of version 1"):
        decode_difference(data[:3] + b"\x02" + data[4:], MODEL, wire="int8")
    for other in (MODEL | {"bias": np.zeros(6, "f4")}, MODEL | {"bias": np.zeros(5)}, MODEL | {"more": np.zeros(1)}):
        with pytest.raises(WireError, match=r"update\.layout"):
            decode_difference(data, other, wire="int8")


@pytest.mark.parametrize("density", [0.01, 0.3])
@pytest.mark.parametrize("wire", WIRES)
def test_no_prefix_and_no_longer_form_is_accepted(wire: str, density: float) -> None:
    data, _ = encode_difference(STEP, wire=wire, density=density, seed=1)
    for length in {*range(0, len(data), 61), *range(60), len(data) - 1}:
        with pytest.raises(WireError):
            decode_difference(data[:length], MODEL, wire=wire)
    with pytest.raises(WireError, match="1 bytes more"):
        decode_difference(data + b"\0", MODEL, wire=wire)


@given(wire=st.sampled_from(WIRES), place=st.floats(0, 1), piece=st.binary(min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, database=None)
def test_changed_bytes_are_refused_or_finite(wire: str, place: float, piece: bytes) -> None:
    data, _ = encode_difference(STEP, wire=wire, seed=1)
    start = int(place * len(data))
    changed = data[:start] + piece + data[start + len(piece) :]
    try:
        decoded = decode_difference(changed, MODEL, wire=wire)
    except WireError:
        return
    assert all(np.isfinite(array).all() for array in decoded.values())


@pytest.mark.parametrize("wire", WIRES)
def test_garbage_takes_no_more_memory_than_the_model_explains(wire: str) -> None:
    model = {"w": np.zeros(500_000, "f4")}
    data, _ = encode_difference({"w": np.ones(500_000, "f4")}, wire=wire, density=1.0, seed=1)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        for trial in range(20):
            changed = np.frombuffer(data, dtype=np.uint8).copy()
            changed[rng.integers(13, min(len(data), 80), size=trial % 3)] = 255
            try:
                decode_difference(changed.tobytes(), model, wire=wire)
            except WireError:
                continue
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 5 * model["w"].nbytes + 2 * len(data)
