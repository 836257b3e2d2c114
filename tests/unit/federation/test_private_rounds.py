"""Campaigns with differential privacy, with secure aggregation, and with both, through the same rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from skerry_contract.campaign import TRAIN
from skerry_contract.secure_aggregation import MASKED
from skerry_contract.tensors import Array
from skerry_server.federation.privacy import PrivacyBudgetError
from skerry_server.federation.rounds.campaign_run import Holdout
from skerry_server.federation.rounds.journal import CampaignJournal
from skerry_server.store.tables import CampaignUpdate
from unit.federation.secure_rig import expected_mean
from unit.federation.secure_world import NAMES, SecureWorld
from unit.federation.world import KilledError, World, three

CENTRAL = {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 0.01, "delta": 1e-5}


def test_central_privacy_clips_noises_and_accounts(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy=CENTRAL, rounds=2)
    result = world.run().run()
    # Each difference is clipped to norm 1 in the plane and weighs the same: one over the root of 2 on each axis.
    assert world.models() == pytest.approx([2**-0.5, 2 * 2**-0.5], abs=0.05)
    first, second = world.journal.rounds()
    assert 0 < first.metrics["privacy_epsilon"] < second.metrics["privacy_epsilon"]
    assert second.privacy["rounds"] == 2
    assert result.privacy["epsilon"] == second.metrics["privacy_epsilon"] == result.metrics["privacy_epsilon"]
    question = next(each for each in world.exchanges[0].broadcasts if each.kind == TRAIN)
    assert (question.fields["clip_norm"], question.fields["noise_std"]) == (1.0, 0.0)


@pytest.mark.parametrize("kill_after", [1, 2])
def test_a_killed_private_round_is_made_again_with_the_same_noise(tmp_path: Path, kill_after: int) -> None:
    (tmp_path / "a").mkdir()
    whole = World(tmp_path / "a", three(), privacy={**CENTRAL, "clip": "adaptive", "noise_multiplier": 1.0}, rounds=3)
    whole.kill_after_commits = kill_after
    with pytest.raises(KilledError):
        whole.run().run()
    key = (whole.spool / "noise.key").read_bytes()
    whole.kill_after_commits = -1
    whole.run().run()
    assert (whole.spool / "noise.key").read_bytes() == key
    rounds = whole.journal.rounds()
    assert [record.privacy["rounds"] for record in rounds] == [1, 2, 3]
    norms = [record.metrics["privacy_clip_norm"] for record in rounds]
    assert len(set(norms)) == 3  # the norm adapts over the kill
    assert rounds[0].strategy_sha256 != rounds[1].strategy_sha256


def test_local_privacy_tells_the_devices_and_weighs_them_the_same(tmp_path: Path) -> None:
    private = {"mode": "local", "clip_norm": 2.0, "noise_multiplier": 0.5, "delta": 1e-5}
    world = World(tmp_path, three(), privacy=private, rounds=1)
    world.run().run()
    question = next(each for each in world.exchanges[0].broadcasts if each.kind == TRAIN)
    assert (question.fields["clip_norm"], question.fields["noise_std"]) == (2.0, 2.0)
    assert world.models() == pytest.approx([(1.0 + 2.0 + 1.75) / 3])  # the fakes add no noise


def test_the_budget_of_privacy_ends_the_campaign_with_what_it_has(tmp_path: Path) -> None:
    private = {**CENTRAL, "noise_multiplier": 1.0, "target_epsilon": 8.0}
    world = World(tmp_path, three(), privacy=private, rounds=10)
    result = world.run().run()
    assert 1 <= result.rounds < 10
    assert result.ended.startswith(f"round {result.rounds + 1} would spend epsilon")
    assert result.privacy["epsilon"] <= 8.0


def test_a_budget_that_does_not_last_for_one_round_fails(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy={**CENTRAL, "target_epsilon": 0.1}, rounds=1)
    with pytest.raises(PrivacyBudgetError, match="round 1 would spend"):
        world.run().run()
    assert world.journal.rounds() == []


# Secure aggregation.


def test_a_secure_round_commits_the_mean_and_journals_nobodys_update(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path)
    result = world.run().run()
    expected = expected_mean(world.secure)
    for key, step in world.moved().items():
        np.testing.assert_allclose(step, expected[key], atol=1e-4)
    record = world.journal.rounds()[0]
    assert (record.invited, record.accepted, result.rounds) == (5, 5, 1)
    assert [update.device_id for update in world.journal.recorded(1)] == ["secure-sum"]
    assert record.loss == pytest.approx(0.5)
    assert record.metrics["bytes_up"] > 0
    assert record.metrics["bytes_down"] > record.metrics["bytes_up"] / 10


def test_a_device_that_drops_out_is_named_and_left_out(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path)
    world.exchange.lost.add(("d2", MASKED))
    world.run().run()
    expected = expected_mean([device for device in world.secure if device.name != "d2"])
    for key, step in world.moved().items():
        np.testing.assert_allclose(step, expected[key], atol=1e-4)
    record = world.journal.rounds()[0]
    assert (record.accepted, list(record.failures)) == (4, ["d2"])


def test_a_sum_that_was_journalled_is_not_collected_again(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path)
    real, evaluations = world.evaluate, [0]

    def killed(state: Mapping[str, Array]) -> Holdout:
        evaluations[0] += 1
        if evaluations[0] == 2:  # of the round's model: the sum is journalled, the round is not committed
            raise KilledError
        return real(state)

    world.evaluate = killed  # type: ignore[method-assign]  # the moment of the kill
    with pytest.raises(KilledError):
        world.run().run()
    assert (world.journal.rounds(), len(world.journal.recorded(1))) == ([], 1)
    world.run().run()
    assert [device.trainings for device in world.secure] == [1] * 5
    expected = expected_mean(world.secure)
    for key, step in world.moved().items():
        np.testing.assert_allclose(step, expected[key], atol=1e-4)
    assert world.journal.rounds()[0].accepted == 5


def test_who_took_part_in_a_secure_round_is_told_to_the_commit(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path)
    told: list[str] = []
    world.journal = CampaignJournal(
        world.database,
        world.artifacts,
        "campaign-1",
        world.spool,
        on_commit=lambda session, committed, updates: told.extend(update.device_id for update in updates),
    )
    world.run().run()
    assert told == list(NAMES)
    with world.database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(CampaignUpdate)) == 1


def test_secure_and_private_at_once(tmp_path: Path) -> None:
    world = SecureWorld(tmp_path, privacy={**CENTRAL, "clip_norm": 4.0, "noise_multiplier": 1e-3})
    world.run().run()
    for key, step in world.moved().items():
        alike = np.mean([device.moves[key] for device in world.secure], axis=0)  # whatever their samples
        np.testing.assert_allclose(step, alike, atol=0.01)
        assert not np.allclose(step, alike, atol=1e-5)  # with noise
    record = world.journal.rounds()[0]
    assert record.metrics["privacy_epsilon"] > 0
    assert record.privacy["mode"] == "central"
