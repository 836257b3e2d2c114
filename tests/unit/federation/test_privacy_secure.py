"""Differential privacy and secure aggregation together: devices clip and mask, the control plane noises the sum."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from skerry_agent.training.local_privacy import noised, withheld
from skerry_contract.campaign import TrainInstruction, TrainReply
from skerry_contract.clipping import clip_state
from skerry_contract.secure_aggregation import MASKED
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_server.federation.privacy import PrivacyPlan
from skerry_server.federation.rounds.round_privacy import RoundPrivacy
from skerry_server.federation.secure_aggregation.sums import SecureSum
from skerry_server.federation.strategies.protocol import Contribution
from unit.federation.fakes import Clock
from unit.federation.secure_rig import SecureDevice, SecureExchange, instruction, model, rules, secure_round

NORM = 1.0


class ClippingDevice(SecureDevice):
    """Clips as it is told, as the worker does."""

    def train(self, asked: TrainInstruction) -> TrainReply:
        reply = super().train(asked)
        state, norm = clip_state(decode_bundle(reply.parameters), decode_bundle(asked.parameters), asked.clip_norm)
        return replace(reply, parameters=encode_bundle(state), norm=norm)


class Unused:
    """The strategy's aggregation, which sees nothing with central privacy."""

    def add(self, contribution: Contribution) -> None:
        raise AssertionError("an update was seen")

    def result(self) -> dict[str, Array]:
        raise AssertionError("the strategy's own aggregate was asked for")

    def close(self) -> None:
        pass


def privacy_of(**settings: object) -> RoundPrivacy:
    given = {"mode": "central", "clip_norm": NORM, "noise_multiplier": 1e-6, **settings}
    return RoundPrivacy(PrivacyPlan.from_settings(given, rounds=3), "campaign-a", lambda: bytes(32))


def masked_sum(devices: list[SecureDevice], clock: Clock, *, lost: str = "") -> SecureSum:
    exchange = SecureExchange(devices, clock, lost={(lost, MASKED)})
    return secure_round(exchange).collect(
        instruction(clip_norm=NORM), model(), rules(len(devices), bound=NORM, weight_bound=1)
    )


def released(privacy: RoundPrivacy, total: SecureSum, planned: int) -> tuple[dict[str, Array], dict[str, float]]:
    carried = privacy.start(planned)
    taken = privacy.sum(Unused(), model(), carried)
    assert taken.add_total(
        total.layout.tensors(total.difference),
        contributions=len(total.survivors),
        below=total.counts["within_norm"],
        quantisation_step=total.rounding_norm / math.sqrt(total.layout.size),
    )
    return taken.result(), privacy.committed(carried, taken)[0]


def clipping_fleet(count: int, clock: Clock) -> list[SecureDevice]:
    devices: list[SecureDevice] = [ClippingDevice(f"device-{index:03d}", index + 1, clock) for index in range(count)]
    for move in devices[0].moves.values():
        move *= 0.1  # one that is within the norm
    return devices


def test_the_private_mean_is_that_of_the_clipped_updates_of_who_is_left() -> None:
    clock = Clock()
    devices = clipping_fleet(6, clock)
    total = masked_sum(devices, clock, lost="device-005")
    assert total.survivors == tuple(device.name for device in devices[:5])
    state, carried = released(privacy_of(clip="adaptive", count_std=1e3, clip_learning_rate=1e-3), total, planned=6)
    expected = np.zeros((6, 10))
    for device in devices[:5]:
        norm = math.sqrt(sum(float((move.astype(np.float64) ** 2).sum()) for move in device.moves.values()))
        expected += device.moves["layer.weight"] * min(1.0, NORM / norm)
    moved = state["layer.weight"].astype(np.float64) - model()["layer.weight"].astype(np.float64)
    assert np.abs(moved - expected / 6).max() < 1e-4  # divided by the planned six, not by the five
    assert state["steps"] == 3
    assert total.counts["within_norm"] == 1
    assert carried["privacy_clip_norm"] != NORM


def test_the_noise_is_that_of_the_multiplier_and_covers_the_rounding() -> None:
    clock = Clock()
    total = masked_sum(clipping_fleet(3, clock), clock)
    quiet = released(privacy_of(), total, planned=3)[0]
    loud = released(privacy_of(noise_multiplier=5.0), total, planned=3)[0]
    noise = np.concatenate(
        [(loud[name].astype(np.float64) - quiet[name].astype(np.float64)).reshape(-1) for name in total.layout.shapes]
    )
    expected = 5.0 * (NORM + total.rounding_norm) / 3
    assert noise.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * len(noise)))


class NoisyDevice(SecureDevice):
    """Clips and noises as it is told, as the worker does."""

    def train(self, asked: TrainInstruction) -> TrainReply:
        reply, base = super().train(asked), decode_bundle(asked.parameters)
        state = noised(decode_bundle(reply.parameters), base, clip_norm=asked.clip_norm, noise_std=asked.noise_std)
        return withheld(replace(reply, parameters=encode_bundle(state)))


def test_shares_of_noise_add_up_to_what_the_sum_needs() -> None:
    """Mode "distributed": no update is seen, no noise is the control plane's, and the sum is as noisy as it must be."""
    privacy = privacy_of(mode="distributed", noise_multiplier=2.0)
    minimum, count, clock = 4, 6, Clock()
    carried = privacy.start(count, minimum=minimum)
    told = privacy.device_fields(carried)
    assert told == {"clip_norm": NORM, "noise_std": 2.0 * NORM / math.sqrt(minimum)}
    devices: list[SecureDevice] = [NoisyDevice(f"device-{index:03d}", index + 1, clock) for index in range(count)]
    for device in devices:
        for move in device.moves.values():
            move *= 0.0
    errors = []
    for number in range(1, 7):
        total = secure_round(SecureExchange(devices, clock)).collect(
            instruction(number, **told), model(), rules(count, bound=NORM + 8 * told["noise_std"], weight_bound=1)
        )
        assert (total.weight, total.counts["examples"], total.counts["clipped_values"]) == (count, count, 0)
        assert not privacy.sum(Unused(), model(), carried).add_total(
            {}, contributions=count, below=0, quantisation_step=0.0
        )
        errors.append(total.difference)
    noise = np.concatenate(errors)
    assert noise.std() == pytest.approx(2.0 * NORM * math.sqrt(count / minimum), rel=4 / math.sqrt(2 * len(noise)))
    assert privacy.lineage(carried)["relation"] == "zero-out"
