"""Devices that lie in secure aggregation: only their own contribution is lost, or the round fails and names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skerry_contract.campaign import BULK_RECORD
from skerry_contract.secure_aggregation import CONFIRM, DEAL_BYTES, KEYS, MASKED, SHARES, UNMASK
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from skerry_server.fleet.authority import CertificateAuthority
from unit.federation.fakes import Clock
from unit.federation.secure_rig import (
    NOW,
    SecureDevice,
    SecureExchange,
    authority,
    expected_mean,
    fleet,
    identity_of,
    instruction,
    model,
    rules,
    secure_round,
)

LIAR = "device-002"
Change = Callable[[dict[str, Any]], dict[str, Any]]


def flip(data: bytes, place: int = 0) -> bytes:
    """With one byte changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def play(
    kind: str, change: Change, *, count: int = 6, devices: list[SecureDevice] | None = None, liar: str = LIAR
) -> tuple[Any, list[SecureDevice]]:
    """A round in which the liar's answers of one kind are changed, each time."""
    clock = Clock()
    devices = devices or fleet(count, clock)
    exchange = SecureExchange(devices, clock)
    exchange.answer = lambda device, asked, fields: (
        change(fields) if device == liar and asked == kind and "session" in fields else fields
    )
    return secure_round(exchange).collect(instruction(), model(), rules(len(devices))), devices


BAD_ANSWERS: list[tuple[str, str, Change, str]] = [
    ("another signature", KEYS, lambda f: {**f, "signature": flip(f["signature"], 20)}, "signature"),
    ("another mask key", KEYS, lambda f: {**f, "mask_key": bytes(range(32))}, "signature"),
    ("another device's name", KEYS, lambda f: {**f, "device_id": "device-001"}, "answered for"),
    ("no certificate", KEYS, lambda f: {**f, "certificate": b"nothing"}, "certificate"),
    ("a short key", KEYS, lambda f: {**f, "sealing_key": b"short"}, "32 to 32 bytes"),
    ("another session", KEYS, lambda f: {**f, "session": "0" * 32}, "in another session"),
    ("shares for too few", SHARES, lambda f: {**f, "dealt": f["dealt"][DEAL_BYTES:]}, "for 6 holders"),
    ("half a share", SHARES, lambda f: {**f, "dealt": f["dealt"][:-1]}, "for 6 holders"),
    ("no commitment", SHARES, lambda f: {**f, "seed_commitment": b""}, "seed_commitment"),
    ("a short vector", MASKED, lambda f: {**f, "masked": f["masked"][:-4]}, "elements of 4 bytes"),
    ("a long vector", MASKED, lambda f: {**f, "masked": f["masked"] + bytes(4)}, "elements of 4 bytes"),
    ("a vector of text", MASKED, lambda f: {**f, "masked": "text"}, "masked: expected bytes"),
    ("no vector", MASKED, lambda f: {n: v for n, v in f.items() if n != "masked"}, "masked: expected a value"),
    ("an impossible time", MASKED, lambda f: {**f, "seconds": float("nan")}, "seconds"),
]


@pytest.mark.parametrize(
    ("kind", "change", "reason"), [row[1:] for row in BAD_ANSWERS], ids=[row[0] for row in BAD_ANSWERS]
)
def test_a_bad_answer_costs_its_device_only(kind: str, change: Change, reason: str) -> None:
    result, devices = play(kind, change)
    honest = [device for device in devices if device.name != LIAR]
    assert result.survivors == tuple(device.name for device in honest)
    assert reason in result.dropped[LIAR]
    assert reason in result.liars[LIAR]
    for key, expected in expected_mean(honest).items():
        np.testing.assert_allclose(result.mean_difference()[key], expected, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        (CONFIRM, lambda f: {**f, "signature": flip(f["signature"], 20)}, "signature"),
        (CONFIRM, lambda f: {**f, "complaints": b"\xff"}, "bitmap"),
        (UNMASK, lambda f: {**f, "shares": flip(f["shares"], 40)}, "revealed shares of device-001"),
        (UNMASK, lambda f: {**f, "shares": f["shares"][:-1]}, "bytes for 6 devices"),
        (UNMASK, lambda f: {**f, "owners": b"\x80"}, "bitmap"),
    ],
    ids=["false signature", "false complaints", "false share", "half a share", "unknown owners"],
)
def test_a_lie_after_the_sum_is_fixed_costs_nothing(kind: str, change: Change, reason: str) -> None:
    result, devices = play(kind, change)
    assert len(result.survivors) == 6
    assert reason in result.liars[LIAR]
    for key, expected in expected_mean(devices).items():
        np.testing.assert_allclose(result.mean_difference()[key], expected, atol=2e-3)


def test_shares_of_no_secret_fail_the_round_and_name_the_dealer() -> None:
    with pytest.raises(SecureRoundFailedError, match=f"{LIAR} dealt shares that are not of its secret") as caught:
        play(SHARES, lambda f: {**f, "seed_commitment": flip(f["seed_commitment"])})
    assert caught.value.liars == {LIAR: "dealt shares that are not of its secret"}
    assert caught.value.revealed


def test_sealed_shares_that_nobody_can_open_fail_the_round_and_name_the_dealer() -> None:
    def spoil(fields: dict[str, Any]) -> dict[str, Any]:
        dealt = bytearray(fields["dealt"])
        for place in range(DEAL_BYTES - 1, len(dealt), DEAL_BYTES):
            dealt[place] ^= 1
        return {**fields, "dealt": bytes(dealt)}

    with pytest.raises(SecureRoundFailedError, match=f"say that what {LIAR} dealt to them is no good") as caught:
        play(SHARES, spoil)
    assert caught.value.phase == "unmask"


def test_a_few_sealed_shares_that_cannot_be_opened_cost_nothing() -> None:
    result, _ = play(SHARES, lambda f: {**f, "dealt": flip(f["dealt"], DEAL_BYTES - 1)})
    assert len(result.survivors) == 6


def test_false_complaints_of_a_few_cost_nothing() -> None:
    result, _ = play(CONFIRM, lambda f: {**f, "complaints": b"\x3b"})
    assert len(result.survivors) == 6


def test_a_vector_beyond_the_bound_fails_the_round() -> None:
    def far(fields: dict[str, Any]) -> dict[str, Any]:
        vector = np.frombuffer(fields["masked"], dtype="<u4").copy()
        vector[-5] ^= np.uint32(1 << 31)
        return {**fields, "masked": vector.tobytes()}

    with pytest.raises(
        SecureRoundFailedError, match="a sum of values is beyond 6 times the bound: at least one of 6 devices lied"
    ):
        play(MASKED, far)


def test_a_weight_beyond_its_bound_fails_the_round() -> None:
    def heavy(fields: dict[str, Any]) -> dict[str, Any]:
        vector = np.frombuffer(fields["masked"], dtype="<u4").copy()
        vector[:1] += np.uint32(1 << 20)
        return {**fields, "masked": vector.tobytes()}

    with pytest.raises(SecureRoundFailedError, match=r"the sum of the weights is \d+ for 6 devices"):
        play(MASKED, heavy)


@pytest.mark.parametrize("named", ["device-001", ""], ids=["another's certificate", "a foreign authority"])
def test_who_is_not_certified_is_not_on_the_roster(named: str) -> None:
    clock = Clock()
    devices = fleet(5, clock)
    issuer = CertificateAuthority.create(now=NOW)
    own = identity_of(LIAR, authority() if named else issuer, named=named)
    devices[2] = SecureDevice(LIAR, 3, clock, own)
    result, _ = play(BULK_RECORD, lambda f: f, devices=devices)
    assert LIAR not in result.survivors
    assert "certificate" in result.dropped[LIAR]


def test_another_model_at_one_device_spoils_the_sum_instead_of_showing_its_update() -> None:
    """A server that sends one device another model gets noise (arXiv 2111.07380)."""
    clock = Clock()
    devices = fleet(4, clock)
    exchange = SecureExchange(devices, clock)

    def question(device: str, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "learning_rate": 0.2} if device == LIAR and kind == MASKED else fields

    exchange.question = question
    with pytest.raises(SecureRoundFailedError) as caught:
        secure_round(exchange).collect(instruction(), model(), rules(4))
    assert "at least one of 4 devices lied" in caught.value.reason
    assert "signature" in caught.value.liars[LIAR]  # it signed that it trained something else
