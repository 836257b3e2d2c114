"""What the control plane sees of one device is uniform, whatever is in it; and large, sparse sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from skerry_contract.secagg_ring import Ring, encode_vector
from skerry_contract.secure_aggregation import DEAL_BYTES, MASKED, SECAGG_KINDS, SHARES, MaskedReply, SharesReply
from skerry_contract.tensors import Array, encode_bundle
from unit.federation.fakes import Clock
from unit.federation.secure_rig import SecureExchange, expected_mean, fleet, instruction, model, rules, secure_round

#: A fair test fails once in a hundred millions.
UNLIKELY = 1e-8
VALUES = 50_000


def flat_model() -> dict[str, Array]:
    """Large enough for statistics."""
    return {"w": np.zeros(VALUES, np.float32)}


def check_uniform(ring: Ring, elements: npt.NDArray[Any]) -> None:
    """Chi-square over the highest and the lowest byte, Kolmogorov-Smirnov over all, no correlation of neighbours."""
    numbers = elements.astype(np.float64) / 2.0**ring.bits
    for byte in ((elements >> (ring.bits - 8)) & 0xFF, elements & 0xFF):
        assert stats.chisquare(np.bincount(byte.astype(np.int64), minlength=256)).pvalue > UNLIKELY
    assert stats.kstest(numbers, "uniform").pvalue > UNLIKELY
    assert stats.pearsonr(numbers[:-1], numbers[1:]).pvalue > UNLIKELY


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("content", ["zeros", "constant", "noise"])
def test_a_masked_vector_is_uniform(bits: int, content: str) -> None:
    clock = Clock()
    devices = fleet(3, clock)
    made = {
        "zeros": np.zeros(VALUES),
        "constant": np.full(VALUES, 0.73),
        "noise": np.random.default_rng(3).normal(0, 0.1, VALUES),
    }[content]
    for device in devices:
        device.moves = {"w": made.astype(np.float32)}
    exchange = SecureExchange(devices, clock)
    asked = instruction(parameters=encode_bundle(flat_model()))
    secure_round(exchange).collect(asked, flat_model(), rules(3, bits=bits, bound=1.0, weight_bound=1))
    ring, keep = Ring(bits, 3), (1 << bits) - 1
    seen = [MaskedReply.from_fields(fields).masked for _, kind, fields in exchange.view if kind == MASKED]
    views = [ring.unpack(masked, ring.header + VALUES)[ring.header :] & keep for masked in seen]
    plain = encode_vector(made.astype(np.float32), {}, ring, bound=1.0, factor=1.0, generator=np.random.default_rng(4))[
        ring.header :
    ]
    for view in views:
        check_uniform(ring, view)  # without knowledge of the update
        check_uniform(ring, (view - plain) & keep)  # and with it
    with pytest.raises(AssertionError):
        check_uniform(ring, plain & keep)  # the statistics can tell
    # Two of three masked vectors together hide as much: only all of them add up.
    check_uniform(ring, (views[0] + views[1]) & keep)
    assert stats.pearsonr(views[0].astype(float), views[1].astype(float)).pvalue > UNLIKELY


def test_what_else_is_sent_is_no_longer_than_needed() -> None:
    clock = Clock()
    exchange = SecureExchange(fleet(5, clock), clock)
    asked = instruction(parameters=encode_bundle(flat_model()))
    for device in exchange.devices:
        device.moves = {"w": np.ones(VALUES, np.float32)}
    secure_round(exchange).collect(asked, flat_model(), rules(5))
    assert {kind for _, kind, _ in exchange.view} == set(SECAGG_KINDS)
    masked = sum(len(MaskedReply.from_fields(fields).masked) for _, kind, fields in exchange.view if kind == MASKED)
    assert exchange.up_bytes - masked < 5 * 5 * 1_000
    assert masked == 5 * 4 * (VALUES + Ring(32, 5).header)


@pytest.mark.soak
def test_a_sparse_graph_recovers_from_dropouts_too() -> None:
    clock = Clock()
    devices = fleet(165, clock)
    gone = devices[::4]
    exchange = SecureExchange(devices, clock, lost={(device.name, MASKED) for device in gone})
    result = secure_round(exchange).collect(instruction(), model(), rules(165, minimum=100))
    rest = [device for device in devices if device not in gone]
    assert len(result.survivors) == len(rest) == 123
    for key, expected in expected_mean(rest).items():
        np.testing.assert_allclose(result.mean_difference()[key], expected, atol=2e-3)
    first = next(fields for _, kind, fields in exchange.view if kind == SHARES)
    assert len(SharesReply.from_fields(first).dealt) == 129 * DEAL_BYTES
