"""Secure rounds whose number is used up: the campaign says why, goes on with the next one, and gives up in the end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_contract.secure_aggregation import SHARES, UNMASK
from skerry_contract.tensors import Array
from skerry_server.federation.exchange import Waits
from skerry_server.federation.rounds.campaign_run import SKIPS
from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.federation.rounds.open_round import SUM_NAME
from skerry_server.federation.rounds.round_loop import RoundFailedError
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from unit.agent_training.linear_graphs import numbers
from unit.federation.secure_rig import expected_mean, model
from unit.federation.secure_world import NAMES, SecureWorld
from unit.federation.world import KilledError

#: Who falls silent when the shares are asked for: more than a third.
SILENT = ("d1", "d2", "d3")


def silent_in_round_1(world: SecureWorld) -> None:
    """Three devices answer everything but the last question of the first round."""

    def answer(device: str, kind: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        return None if kind == UNMASK and device in SILENT and not world.journal.rounds() else fields

    world.exchange.answer = answer


def check_second_round(world: SecureWorld, record: RoundRecord, taking_part: tuple[str, ...] = NAMES) -> None:
    """Its model is the base's, moved once."""
    state, start = world.journal.load(record.parameters_sha256), model()
    for key, step in expected_mean([device for device in world.secure if device.name in taking_part]).items():
        np.testing.assert_allclose(numbers(state[key]) - numbers(start[key]), step, atol=1e-4)


def test_a_round_that_was_revealed_and_not_summed_is_skipped_with_its_reason(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, rounds=2)
    silent_in_round_1(world)
    result = world.run().run()
    first, second = world.journal.rounds()
    assert (first.skipped, first.accepted, second.skipped, second.accepted) == (True, 0, False, 5)
    assert first.failures[SUM_NAME].startswith("secure aggregation, unmask: 2 devices answered, 4 are needed")
    assert set(SILENT) < first.failures.keys()
    assert world.journal.load(first.parameters_sha256)["layer.bias"].tobytes() == model()["layer.bias"].tobytes()
    check_second_round(world, second)
    assert (result.best.number, result.rounds, result.metrics["rounds_skipped"]) == (2, 2, 1.0)


def test_who_takes_over_before_the_skip_is_written_asks_once_more_and_may_get_the_sum(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, rounds=1)
    silent_in_round_1(world)
    real, evaluations = world.evaluate, [0]

    def killed(state: Mapping[str, Array]) -> object:
        evaluations[0] += 1
        if evaluations[0] == 2:  # of the round that is to be skipped
            raise KilledError
        return real(state)

    world.evaluate = killed  # type: ignore[method-assign, assignment]  # the moment of the kill
    with pytest.raises(KilledError):
        world.run().run()
    world.exchange.answer = lambda device, kind, fields: fields
    world.run().run()
    (record,) = world.journal.rounds()
    assert (record.skipped, record.accepted) == (False, 5)
    assert [device.trainings for device in world.secure] == [1] * 5


def test_a_round_that_devices_have_unmasked_for_a_process_that_lost_its_files_is_skipped(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, rounds=2)
    real, evaluations = world.evaluate, [0]

    def killed(state: Mapping[str, Array]) -> object:
        evaluations[0] += 1
        if evaluations[0] == 2:  # of the first round's model: the sum is journalled, nothing is committed
            raise KilledError
        return real(state)

    world.evaluate = killed  # type: ignore[method-assign, assignment]  # the moment of the kill
    with pytest.raises(KilledError):
        world.run().run()
    shutil.rmtree(world.spool)
    world.run().run()
    first, second = world.journal.rounds()
    assert first.skipped
    assert "round-used-up: round 1 is unmasked, 1 is not asked again" in first.failures[SUM_NAME]
    check_second_round(world, second)


def test_a_device_whose_lie_spoiled_a_round_is_not_asked_again(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, rounds=2)

    def answer(device: str, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if device == "d4" and kind == SHARES:  # shares that are not of its secret
            return {**fields, "seed_commitment": bytes(32)}
        return fields

    world.exchange.answer = answer
    world.run().run()
    first, second = world.journal.rounds()
    assert first.failures["d4"] == "lied: dealt shares that are not of its secret"
    assert (second.skipped, second.accepted) == (False, 4)
    check_second_round(world, second, tuple(name for name in NAMES if name != "d4"))


def test_too_many_skipped_rounds_in_a_row_fail_the_campaign_with_the_reason(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, rounds=9)
    world.exchange.lost = {(name, UNMASK) for name in SILENT}
    with pytest.raises(SecureRoundFailedError, match="unmask: 2 devices answered, 4 are needed"):
        world.run().run()
    assert [record.skipped for record in world.journal.rounds()] == [True] * SKIPS


def test_a_campaign_of_nothing_but_a_skipped_round_fails(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, rounds=1)
    world.exchange.lost = {(name, UNMASK) for name in SILENT}
    with pytest.raises(RoundFailedError, match="secure aggregation, unmask"):
        world.run().run()


@pytest.mark.parametrize(("mode", "spent"), [("distributed", [1, 2]), ("central", [0, 1])])
def test_noise_that_devices_added_to_a_skipped_round_is_spent(tmp_path: Path, mode: str, spent: list[int]) -> None:
    private = {"mode": mode, "clip_norm": 4.0, "noise_multiplier": 1.0, "delta": 1e-5}
    world = SecureWorld(tmp_path, rounds=2, privacy=private)
    silent_in_round_1(world)
    result = world.run().run()
    assert [record.privacy["rounds"] for record in world.journal.rounds()] == spent
    assert result.privacy["epsilon"] == world.journal.rounds()[1].privacy["epsilon"] > 0


def test_a_secure_round_waits_where_the_exchange_hears_of_answers(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path)
    waited: list[float] = []

    class Hears(type(world.exchange)):  # type: ignore[misc]  # the exchange of this world, and it hears
        def wait(self, seconds: float) -> None:
            waited.append(seconds)
            world.clock.sleep(seconds)

    world.exchange = Hears(world.secure, world.clock)
    world.exchange.lost.add(("d2", UNMASK))  # so that there is something to wait for
    assert isinstance(world.exchange, Waits)
    world.run().run()
    assert waited
