"""Rounds of secure aggregation with real device sides: sums, dropouts at every phase, faults, resumption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skerry_contract.campaign import TrainReply
from skerry_contract.secure_aggregation import CONFIRM, KEYS, MASKED, SECAGG_KINDS, SHARES, UNMASK
from skerry_server.federation.exchange import ExchangeLostError
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from skerry_server.federation.secure_aggregation.sums import SecureSum
from unit.federation.fakes import Clock
from unit.federation.secure_rig import (
    SecureDevice,
    SecureExchange,
    expected_mean,
    fleet,
    instruction,
    model,
    rules,
    secure_round,
)


class MemoryKeeper:
    """Keeps over a kill of the control plane's process."""

    def __init__(self) -> None:
        self.data: bytes | None = None

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes) -> None:
        self.data = data


def check_sum(result: SecureSum, devices: list[SecureDevice]) -> None:
    """The sum is that of these devices, up to rounding of 1/2^20 of the bound, and their counts are exact."""
    assert result.survivors == tuple(sorted(device.name for device in devices))
    assert result.weight == sum(device.examples for device in devices)
    assert result.counts["examples"] == sum(device.examples for device in devices)
    assert result.metrics["loss"] == pytest.approx(0.5, abs=1e-3)
    assert result.metrics["validation_accuracy"] == 0.75
    mean = result.mean_difference()
    for key, expected in expected_mean(devices).items():
        np.testing.assert_allclose(mean[key], expected, atol=2e-3)


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_sum_of_all(bits: int) -> None:
    clock = Clock()
    devices = fleet(5, clock)
    exchange = SecureExchange(devices, clock)
    result = secure_round(exchange).collect(instruction(), model(), rules(5, bits=bits, bound=2.0, weight_bound=32))
    assert result.dropped == {}
    assert result.liars == {}
    assert result.counts["clipped_values"] == 0
    assert result.survivors == tuple(device.name for device in devices)
    before, moved = model(), result.apply(model())
    tolerance = {16: 8e-3, 24: 4e-5, 32: 1e-6}[bits]
    for key, expected in expected_mean(devices).items():
        step = moved[key].astype(np.float64) - before[key].astype(np.float64)
        np.testing.assert_allclose(step, expected, atol=tolerance)
    assert moved["steps"] == 3  # counters stay
    assert all(device.worker.open_sessions == 0 for device in devices)


def test_equal_weights_and_clipping() -> None:
    clock = Clock()
    devices = fleet(3, clock)
    for device, value in zip(devices, (0.1, 0.2, 9.0), strict=True):
        device.moves = {"layer.bias": np.full(7, value, np.float32)}
    exchange = SecureExchange(devices, clock)
    result = secure_round(exchange).collect(instruction(), model(), rules(3, bound=0.5, weight_bound=1))
    assert result.weight == 3
    np.testing.assert_allclose(result.mean_difference()["layer.bias"], (0.1 + 0.2 + 0.5) / 3, atol=1e-6)
    assert result.counts["clipped_values"] == 7
    assert result.counts["examples"] == 11 + 12 + 13


def test_personal_parameters_stay() -> None:
    clock = Clock()
    exchange = SecureExchange(fleet(3, clock), clock)
    asked = instruction(personal="*.bias")
    result = secure_round(exchange).collect(asked, model(), rules(3))
    assert set(result.mean_difference()) == {"layer.weight"}


@pytest.mark.parametrize("kind", SECAGG_KINDS)
@pytest.mark.parametrize("how", ["silent", "gone", "restarted"])
def test_three_of_ten_drop_out(kind: str, how: str) -> None:
    clock = Clock()
    devices = fleet(10, clock)
    gone = devices[:2] + devices[5:6]
    names = {device.name for device in gone}

    def question(device: str, asked: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        if asked != kind or device not in names:
            return fields
        for other in gone:
            if other.name == device and how == "restarted":
                other.restart()
            elif other.name == device and how == "gone":
                other.node_id = None
        return None if how == "silent" else fields

    exchange = SecureExchange(devices, clock, question=question)
    if how == "gone":
        exchange.lost = {(name, kind) for name in names}
    result = secure_round(exchange).collect(instruction(), model(), rules(10, minimum=7))
    in_sum = [d for d in devices if d not in gone] if kind in (KEYS, SHARES, MASKED) else devices
    if how == "restarted" and kind == KEYS:
        in_sum = devices  # it had nothing to forget
    check_sum(result, in_sum)
    assert set(result.dropped) == {device.name for device in devices} - {device.name for device in in_sum}


@pytest.mark.parametrize("kind", [SHARES, MASKED, CONFIRM, UNMASK])
def test_four_of_ten_are_too_many(kind: str) -> None:
    clock = Clock()
    devices = fleet(10, clock)
    exchange = SecureExchange(devices, clock, lost={(device.name, kind) for device in devices[:4]})
    with pytest.raises(SecureRoundFailedError, match="6 devices answered, 7 are needed") as caught:
        secure_round(exchange).collect(instruction(), model(), rules(10, minimum=3))
    phases = {SHARES: "shares", MASKED: "masked", CONFIRM: "confirm", UNMASK: "unmask"}
    assert caught.value.phase == phases[kind]
    assert caught.value.failures[devices[0].name] == "no answer"
    assert caught.value.revealed == (kind == UNMASK)


def test_too_few_devices() -> None:
    clock = Clock()
    exchange = SecureExchange(fleet(2, clock), clock)
    with pytest.raises(SecureRoundFailedError, match=r"keys: 2 devices answered, 3 are needed"):
        secure_round(exchange).collect(instruction(), model(), rules(3))
    with pytest.raises(ValueError, match="at least 3 devices"):
        secure_round(exchange).collect(instruction(), model(), rules(3, minimum=2))


def test_doubled_and_reordered_messages_change_nothing() -> None:
    clock = Clock()
    devices = fleet(6, clock)
    exchange = SecureExchange(devices, clock, doubled=True, newest_first=True)
    result = secure_round(exchange).collect(instruction(), model(), rules(6))
    check_sum(result, devices)
    assert [device.trainings for device in devices] == [1] * 6


def test_an_answer_that_got_lost_is_given_again() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    lost: set[tuple[str, str]] = set()

    def answer(device: str, kind: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        if (device, kind) in lost or device != "device-001":
            return fields
        lost.add((device, kind))
        return {**fields, "device_id": "somebody-else"}

    exchange = SecureExchange(devices, clock, answer=answer)
    result = secure_round(exchange).collect(instruction(), model(), rules(4, minimum=4))
    check_sum(result, devices)
    assert len(lost) == 5
    assert (devices[1].trainings, result.liars) == (1, {})


def test_an_interrupted_training_is_asked_for_again() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    devices[2].interruptions = 1
    exchange = SecureExchange(devices, clock)
    check_sum(secure_round(exchange).collect(instruction(), model(), rules(4, minimum=4)), devices)


def test_rounds_follow_each_other_and_are_not_repeated() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    exchange = SecureExchange(devices, clock)
    collector = secure_round(exchange)
    for number in (1, 2):
        check_sum(collector.collect(instruction(number), model(), rules(4)), devices)
    with pytest.raises(
        SecureRoundFailedError, match="round-used-up: round 2 is unmasked, 2 is not asked again"
    ) as caught:
        collector.collect(instruction(2), model(), rules(4))
    assert caught.value.used_up
    check_sum(collector.collect(instruction(3), model(), rules(4)), devices)


@pytest.mark.parametrize("kind", [CONFIRM, UNMASK])
def test_a_killed_control_plane_unmasks_what_it_has(kind: str) -> None:
    clock = Clock()
    devices = fleet(6, clock)
    keeper = MemoryKeeper()
    killed = False

    def answer(device: str, asked: str, fields: dict[str, Any]) -> dict[str, Any]:
        nonlocal killed
        if asked == kind and device == "device-003" and not killed:
            killed = True
            raise ExchangeLostError("killed")
        return fields

    exchange = SecureExchange(devices, clock, answer=answer)
    with pytest.raises(ExchangeLostError):
        secure_round(exchange).collect(instruction(), model(), rules(6), keeper=keeper)
    assert keeper.data is not None
    check_sum(secure_round(exchange).collect(instruction(), model(), rules(6), keeper=keeper), devices)
    assert [device.trainings for device in devices] == [1] * 6


def test_a_killed_control_plane_begins_anew_before_that() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    keeper = MemoryKeeper()
    exchange = SecureExchange(devices, clock)

    def answer(device: str, asked: str, fields: dict[str, Any]) -> dict[str, Any]:
        if asked == MASKED and device == "device-003":
            exchange.answer = lambda device, kind, fields: fields
            raise ExchangeLostError("killed")
        return fields

    exchange.answer = answer
    with pytest.raises(ExchangeLostError):
        secure_round(exchange).collect(instruction(), model(), rules(4), keeper=keeper)
    assert keeper.data is None
    check_sum(secure_round(exchange).collect(instruction(), model(), rules(4), keeper=keeper), devices)
    # What is kept of another round says nothing about this one.
    check_sum(secure_round(exchange).collect(instruction(2), model(), rules(4), keeper=keeper), devices)


def test_devices_that_restarted_meanwhile_use_the_round_up() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    keeper = MemoryKeeper()
    exchange = SecureExchange(devices, clock, lost={(device.name, CONFIRM) for device in devices})
    with pytest.raises(SecureRoundFailedError) as caught:
        secure_round(exchange).collect(instruction(), model(), rules(4), keeper=keeper)
    assert (caught.value.phase, caught.value.revealed, keeper.data) == ("confirm", False, b"")

    exchange = SecureExchange(devices, clock)

    def answer(device: str, asked: str, fields: dict[str, Any]) -> dict[str, Any]:
        if asked == CONFIRM:
            raise ExchangeLostError("killed")
        return fields

    exchange.answer = answer
    with pytest.raises(ExchangeLostError):
        secure_round(exchange).collect(instruction(), model(), rules(4), keeper=keeper)
    for device in devices:
        device.restart()
    exchange = SecureExchange(devices, clock)
    with pytest.raises(SecureRoundFailedError, match="expected one that this device is in") as caught:
        secure_round(exchange).collect(instruction(), model(), rules(4), keeper=keeper)
    assert caught.value.revealed
    check_sum(secure_round(exchange).collect(instruction(2), model(), rules(4), keeper=keeper), devices)


def test_a_broken_checkpoint_begins_anew() -> None:
    clock = Clock()
    devices = fleet(3, clock)
    keeper = MemoryKeeper()
    keeper.data = b"not a session"
    check_sum(
        secure_round(SecureExchange(devices, clock)).collect(instruction(), model(), rules(3), keeper=keeper), devices
    )


@pytest.mark.parametrize("changes", [{"bits": 20}, {"bound": 0.0}, {"weight_bound": 0}, {"minimum": 2000}])
def test_impossible_rules(changes: dict[str, Any]) -> None:
    clock = Clock()
    with pytest.raises(ValueError):
        secure_round(SecureExchange(fleet(3, clock), clock)).collect(instruction(), model(), rules(3, **changes))


def test_an_update_that_is_not_finite_costs_its_device_only() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    devices[1].moves["layer.bias"][3] = np.nan
    exchange = SecureExchange(devices, clock)
    result = secure_round(exchange).collect(instruction(), model(), rules(4, minimum=3))
    check_sum(result, [devices[0], devices[2], devices[3]])
    assert "expected finite values" in result.dropped["device-001"]


def test_a_trainer_that_answers_in_another_wire_is_left_out() -> None:
    clock = Clock()
    devices = fleet(4, clock)
    plain = devices[3].train

    def train(asked: Any) -> TrainReply:
        reply = plain(asked)
        return TrainReply(**{**reply.to_fields(), "wire": "int8"})  # type: ignore[arg-type]

    devices[3].train = train  # type: ignore[method-assign]
    devices[3].restart()
    result = secure_round(SecureExchange(devices, clock)).collect(instruction(), model(), rules(4, minimum=3))
    check_sum(result, devices[:3])
