"""Shamir's shares, the ring, masks, the graph and packed records of secure aggregation, against hand-made numbers."""

from __future__ import annotations

import dataclasses
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.errors import WireError
from skerry_contract.secagg_codec import Reader, bitmap, indices_of, write_bytes
from skerry_contract.secagg_graph import COMPLETE, DEGREE, MAXIMUM_DEVICES, Graph, quorum, threshold
from skerry_contract.secagg_masks import agree, apply_mask, derive, private_key, seal, unseal
from skerry_contract.secagg_ring import (
    RING_BITS,
    SUMS,
    Ring,
    SumRangeError,
    VectorLayout,
    decode_sum,
    encode_vector,
    rounding_norm,
)
from skerry_contract.secagg_roster import Entry, Roster
from skerry_contract.secagg_shamir import PRIME, combine, new_secret, split
from skerry_contract.secure_aggregation import KeysInstruction, KeysReply, training_digest
from unit.federation.secure_rig import instruction, model


def number(share: bytes) -> int:
    return int.from_bytes(share, "little")


# Shamir


def test_the_modulus_is_prime_and_shares_lie_on_a_line() -> None:
    assert pow(3, PRIME - 1, PRIME) == 1
    secret = (12345).to_bytes(32, "little")
    first, second, third = map(number, split(secret, 3, 2))
    assert (second - first) % PRIME == (third - second) % PRIME
    assert (2 * first - second) % PRIME == 12345
    assert split(secret, 4, 1) == [secret] * 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.data())
def test_any_threshold_of_shares_gives_the_secret_and_fewer_another(count: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(1, count))
    points = data.draw(st.permutations(range(1, count + 1)))
    secret = new_secret()
    shares = split(secret, count, least)
    assert combine({point: shares[point - 1] for point in points[:least]}) == secret
    assert combine({point: shares[point - 1] for point in points}) == secret
    if least > 1:
        assert combine({point: shares[point - 1] for point in points[: least - 1]}) != secret


@pytest.mark.parametrize(
    ("secret", "count", "least"),
    [(bytes(32), 3, 4), (bytes(32), 3, 0), (bytes(31), 3, 2), (b"\xff" * 32, 3, 2), (bytes(32), 1025, 2)],
)
def test_impossible_splits(secret: bytes, count: int, least: int) -> None:
    with pytest.raises(ValueError):
        split(secret, count, least)


@pytest.mark.parametrize("shares", [{}, {0: bytes(32)}, {1: bytes(31)}, {1: b"\xff" * 32}, {1025: bytes(32)}])
def test_impossible_shares(shares: dict[int, bytes]) -> None:
    with pytest.raises(WireError):
        combine(shares)


# Ring


@pytest.mark.parametrize("bits", RING_BITS)
@pytest.mark.parametrize("devices", [3, 100])
def test_sums_at_the_bound_are_exact_and_one_more_is_noticed(bits: int, devices: int) -> None:
    ring = Ring(bits, devices)
    generator = np.random.default_rng(0)
    values = np.array([1.0, -1.0, 5.0, 0.0], np.float32)
    most = (1 << 40) - 1
    total = ring.zeros(ring.header + 4)
    for _ in range(devices):
        total += encode_vector(
            values, {"weight": 7, "examples": most}, ring, bound=1.0, factor=1.0, generator=generator
        )
    sums, counts = decode_sum(total, ring, bound=1.0, devices=devices)
    np.testing.assert_allclose(sums, np.array([1.0, -1.0, 1.0, 0.0]) * devices, rtol=1e-12)
    assert counts == {
        **dict.fromkeys(SUMS, 0),
        "weight": 7 * devices,
        "examples": most * devices,
        "clipped_values": devices,
    }
    total[ring.header] += 1
    with pytest.raises(SumRangeError, match="beyond"):
        decode_sum(total, ring, bound=1.0, devices=devices)


def test_hand_computed_codes() -> None:
    ring = Ring(16, 3)
    assert (ring.levels, ring.digit_bits, ring.digits) == (5461, 14, 3)
    values = np.array([1.0, -0.5, 0.25], np.float32)
    vector = encode_vector(values, {"weight": 20_000}, ring, bound=1.0, factor=0.5, generator=np.random.default_rng(1))
    assert vector[:3].tolist() == [20_000 & 16_383, 1, 0]
    coded = ring.signed(vector[ring.header :])
    assert coded[0] in (2730, 2731)  # 2730.5
    assert coded[1] in (-1366, -1365)  # -1365.25
    assert coded[2] in (682, 683)  # 682.625
    assert rounding_norm(ring, bound=1.0, size=4) == pytest.approx(2 / 5461)


def test_rounding_is_unbiased() -> None:
    ring, generator = Ring(16, 3), np.random.default_rng(2)
    values = np.full(200_000, 0.1234567, np.float32)
    coded = ring.signed(encode_vector(values, {}, ring, bound=1.0, factor=1.0, generator=generator)[ring.header :])
    exact = 0.1234567 * ring.levels
    assert set(coded.tolist()) == {int(exact), int(exact) + 1}
    assert abs(coded.mean() - exact) < 5 * 0.5 / np.sqrt(len(values))


@pytest.mark.parametrize("bits", RING_BITS)
def test_packing_keeps_elements(bits: int) -> None:
    ring = Ring(bits, 3)
    vector = ring.zeros(1000)
    vector += (np.arange(1000) * 16_001).astype(vector.dtype)
    packed = ring.pack(vector)
    assert len(packed) == 1000 * bits // 8
    keep = (1 << bits) - 1
    assert (ring.unpack(packed, 1000) & keep).tolist() == (vector & keep).tolist()
    with pytest.raises(WireError, match="1000 elements"):
        ring.unpack(packed[:-1], 1000)


def test_signs_in_every_ring() -> None:
    assert Ring(24, 3).signed(np.array([0xFFFFFF, 0x800000, 5, 0xAA000001], "<u4")).tolist() == [-1, -(1 << 23), 5, 1]
    assert Ring(16, 3).signed(np.array([0xFFFF, 0x8000], "<u2")).tolist() == [-1, -(1 << 15)]
    assert Ring(32, 3).signed(np.array([0xFFFFFFFF], "<u4")).tolist() == [-1]


@pytest.mark.parametrize(("bits", "devices"), [(17, 3), (16, 3000), (32, 0)])
def test_impossible_rings(bits: int, devices: int) -> None:
    with pytest.raises(ValueError):
        Ring(bits, devices)


def test_layout() -> None:
    layout = VectorLayout.of(model(), "*.bias")
    assert (list(layout.shapes), layout.size) == (["layer.weight"], 60)
    flat = VectorLayout.of(model()).flatten(model())
    np.testing.assert_array_equal(VectorLayout.of(model()).tensors(flat)["layer.weight"], model()["layer.weight"])
    for broken in ({}, {"layer.weight": np.zeros((6, 9), np.float32)}, {"layer.weight": np.zeros((6, 10), np.int64)}):
        with pytest.raises(WireError, match=r"parameters\[layer.weight\]"):
            layout.flatten(broken)


# Masks


def test_the_mask_is_chacha20() -> None:
    """Key stream of the zero key and nonce: draft-agl-tls-chacha20poly1305, test vectors of ChaCha20."""
    ring = Ring(32, 3)
    vector = ring.zeros(8)
    apply_mask(vector, bytes(32), ring)
    assert vector.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    apply_mask(vector, bytes(32), ring, subtract=True)
    assert not vector.any()


@pytest.mark.parametrize("bits", RING_BITS)
@pytest.mark.parametrize("length", [1, 16_384, 70_001])
def test_masks_cancel_over_any_length(bits: int, length: int) -> None:
    ring = Ring(bits, 3)
    first, second = ring.zeros(length), ring.zeros(length)
    apply_mask(first, b"k" * 32, ring)
    apply_mask(second, b"k" * 32, ring, subtract=True)
    assert first.any()
    assert not (first + second).any()


def test_agreement_and_seals() -> None:
    ours, theirs = private_key(new_secret()), private_key(new_secret())
    shared = agree(ours, theirs.public_key().public_bytes_raw())
    assert shared == agree(theirs, ours.public_key().public_bytes_raw())
    keys = {derive(shared, b"c", "pair", 1, 2), derive(shared, b"c", "pair", 2, 1), derive(shared, b"d", "pair", 1, 2)}
    assert len(keys | {derive(shared, b"c", "self", 1, 2)}) == 4
    sealed = seal(shared, b"share", b"context")
    assert unseal(shared, sealed, b"context") == b"share"
    for key, data, context in (
        (bytes(32), sealed, b"context"),
        (shared, sealed[:-1], b"context"),
        (shared, sealed, b"other"),
        (shared, b"", b"context"),
    ):
        with pytest.raises(WireError, match="sealed for this device"):
            unseal(key, data, context)
    with pytest.raises(WireError, match="large order"):
        agree(ours, bytes(32))


# Graph


def test_everybody_or_a_ring() -> None:
    small = Graph(5, b"seed")
    assert all(small.holders(index) == [0, 1, 2, 3, 4] for index in range(5))
    assert [quorum(count) for count in (3, 4, 5, 9, 10, 50, 100)] == [3, 3, 4, 7, 7, 34, 67]
    large = Graph(300, b"seed")
    holders = [set(large.holders(index)) for index in range(300)]
    assert all(len(held) == DEGREE + 1 and index in held for index, held in enumerate(holders))
    assert all(index in holders[other] for index, held in enumerate(holders) for other in held)
    assert holders != [set(Graph(300, b"other").holders(index)) for index in range(300)]
    for count in (0, MAXIMUM_DEVICES + 1):
        with pytest.raises(ValueError):
            Graph(count, b"")


@pytest.mark.parametrize("devices", [COMPLETE + 1, 256, 512, MAXIMUM_DEVICES])
def test_the_sparse_threshold_holds_both_ways(devices: int) -> None:
    def tail(marked: int, least: int) -> float:
        """Chance that at least ``least`` of DEGREE random others are among ``marked``."""
        ways = sum(comb(marked, hits) * comb(devices - 1 - marked, DEGREE - hits) for hits in range(least, DEGREE + 1))
        return ways / comb(devices - 1, DEGREE)

    least = threshold(devices)
    colluding = tail(devices // 5, least)
    lost = tail(devices * 3 // 10, DEGREE - least + 1)  # the owner is lost as well: fewer than ``least`` are left
    assert colluding == 0 or log2(colluding) < -34
    assert lost == 0 or log2(lost) < -34


# Records


def test_bitmaps_and_records() -> None:
    assert bitmap([0, 3, 9], 10) == b"\x09\x02"
    assert indices_of(b"\x09\x02", 10, field="x") == {0, 3, 9}
    for bits in (b"", b"\x09", b"\x09\x04", b"\0\0\0"):
        with pytest.raises(WireError, match="bitmap of 10"):
            indices_of(bits, 10, field="x")
    parts = bytearray()
    write_bytes(parts, b"abc")
    reader = Reader("x", bytes(parts))
    assert (reader.text(3), reader.left) == ("abc", 0)
    reader.end()
    for data, limit in ((b"\0", 3), (b"\0\4abc", 9), (b"\0\3abc", 2), (b"\0\1\xff", 3)):
        with pytest.raises(WireError, match=r"^x: "):
            Reader("x", data).text(limit)
    with pytest.raises(WireError):
        Reader("x", b"z").end()


entries = st.builds(
    Entry,
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    *[st.binary(min_size=32, max_size=32)] * 2,
    st.binary(max_size=100),
    st.binary(max_size=80),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(entries, min_size=1, max_size=5, unique_by=lambda entry: entry.device_id))
def test_rosters_survive_the_wire(chosen: list[Entry]) -> None:
    roster = Roster(tuple(sorted(chosen, key=lambda entry: entry.device_id)), b"terms")
    assert Roster.decode(roster.encode(), b"terms") == roster
    assert roster.digest != Roster(roster.entries, b"other").digest
    if len(chosen) > 1:
        with pytest.raises(WireError, match="ascending"):
            Roster.decode(Roster(roster.entries[::-1], b"").encode(), b"")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_roster_or_a_wire_error(data: bytes) -> None:
    try:
        assert Roster.decode(data, b"").encode() == data
    except WireError:
        pass


def test_terms_and_models_change_the_digests() -> None:
    terms = KeysInstruction(
        campaign_id="c", round=1, session="0" * 32, bits=32, bound=8.0, weight_bound=1, minimum=3, lifetime_ms=1000
    )
    assert KeysInstruction.from_fields({**terms.to_fields(), "bound": 8}) == terms
    others = [
        dataclasses.replace(terms, round=2),
        dataclasses.replace(terms, bound=9.0),
        dataclasses.replace(terms, bits=24),
    ]
    assert len({item.digest for item in [terms, *others]}) == 4
    for name, value in (("round", True), ("bits", 64), ("session", "0"), ("bound", float("nan")), ("minimum", 2)):
        with pytest.raises(WireError, match=name):
            KeysInstruction.from_fields({**terms.to_fields(), name: value})
    with pytest.raises(WireError, match="device_id"):
        KeysReply.from_fields({})
    moved = {**model(), "steps": np.array(4, dtype=np.int64)}
    digests = {
        training_digest(instruction(), model()),
        training_digest(instruction(2), model()),
        training_digest(instruction(clip_norm=1.0), model()),
        training_digest(instruction(), moved),
    }
    assert len(digests) == 4
    assert training_digest(instruction(deadline_ms=1), model()) == training_digest(instruction(), model())
