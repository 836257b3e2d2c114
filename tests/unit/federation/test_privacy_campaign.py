"""Whole campaigns with privacy, over fake devices and a real journal, killed and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skerry_contract.campaign import EVALUATE, TRAIN
from skerry_contract.tensors import Array
from skerry_server.federation.privacy import PrivacyBudgetError, PrivacyPlan
from skerry_server.releases.candidate_job import _privacy as candidate_privacy
from skerry_server.store.tables import Candidate
from unit.federation.world import KilledError, World, three

#: Next to no noise, so that models can be computed by hand.
FAINT = {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 1e-6}
NOISY = {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 1.0}


def test_every_device_weighs_the_same_and_is_clipped(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy={**FAINT, "clip_norm": 1.5 * 2**0.5})
    world.run().run()
    # Differences 1, 2 and 1.75 of two values each; the norm allows 1.5 per value: (1 + 1.5 + 1.5) / 3.
    assert world.models()[0] == pytest.approx(4 / 3, rel=1e-4)
    told = [broadcast.fields for broadcast in world.exchanges[0].broadcasts if broadcast.kind == TRAIN]
    assert {fields["clip_norm"] for fields in told} == {1.5 * 2**0.5}
    assert {fields["noise_std"] for fields in told} == {0.0}


def test_a_device_that_stays_away_makes_the_step_shorter_and_not_the_others_heavier(tmp_path: Path) -> None:
    devices = three()
    devices[2].node_id = None
    world = World(tmp_path, devices, rounds=1, privacy={**FAINT, "clip_norm": 100.0})
    world.run().run()
    assert world.models()[0] == pytest.approx((1 + 2) / 3, rel=1e-4)


@pytest.mark.parametrize("killed_in_round", [1, 3])
@pytest.mark.parametrize("clip", ["fixed", "adaptive"])
def test_a_round_killed_before_its_commit_comes_out_the_same_and_is_spent_once(
    tmp_path: Path, killed_in_round: int, clip: str
) -> None:
    world = World(tmp_path, three(), quorum=1.0, privacy={**NOISY, "clip": clip})
    seen: list[bytes] = []
    real = world.evaluate

    def evaluate(state: Mapping[str, Array]) -> object:
        seen.append(state["w"].tobytes())
        if len(seen) == killed_in_round + 1:  # the base model is the first
            raise KilledError
        return real(state)

    world.evaluate = evaluate  # type: ignore[method-assign, assignment]  # the moment of the kill
    with pytest.raises(KilledError):
        world.run().run()
    assert len(world.journal.rounds()) == killed_in_round - 1
    lost = seen[-1]
    world.run().run()
    rounds = world.journal.rounds()
    assert world.journal.load(rounds[killed_in_round - 1].parameters_sha256)["w"].tobytes() == lost
    assert [record.metrics["privacy_rounds"] for record in rounds] == [1.0, 2.0, 3.0]
    spent = [record.metrics["privacy_epsilon"] for record in rounds]
    assert spent == sorted(set(spent))
    assert len({bytes(np.asarray(world.journal.load(r.parameters_sha256)["w"])) for r in rounds}) == 3
    norms = [record.metrics["privacy_clip_norm"] for record in rounds]
    assert (len(set(norms)) == 1) == (clip == "fixed")


def test_the_campaign_ends_before_the_round_that_would_pass_the_budget(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=9, privacy={**NOISY, "target_epsilon": 7.0})
    result = world.run().run()
    assert result.rounds == len(world.journal.rounds()) == 2  # 4.38 and 6.57; the third would make it 8.38
    assert result.ended.startswith("round 3 would spend epsilon 8.385")
    assert result.privacy["epsilon"] == pytest.approx(6.573, abs=1e-3)
    assert result.privacy["rounds"] == 2
    assert result.metrics["privacy_epsilon"] == result.privacy["epsilon"]


def test_the_candidates_lineage_says_what_all_rounds_have_spent(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy=NOISY)
    result = world.run().run()
    job: Any = SimpleNamespace(context=world)  # the step reads nothing of it but the database
    assert candidate_privacy(job, Candidate(campaign_id="campaign-1")) == result.privacy
    assert result.privacy["rounds"] == 3
    assert candidate_privacy(job, Candidate(campaign_id="")) == {}


def test_a_budget_that_does_not_last_for_a_round_asks_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy={**NOISY, "target_epsilon": 1.0})
    with pytest.raises(PrivacyBudgetError, match="round 1 would spend"):
        world.run().run()
    assert [device.asked for device in world.devices] == [0, 0, 0]


def test_a_target_is_spent_to_the_last_round_and_not_beyond(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy={"mode": "central", "target_epsilon": 3.0})
    result = world.run().run()
    assert (result.rounds, result.privacy["noise_multiplier"]) == (
        3,
        PrivacyPlan.from_settings(world.settings.privacy, rounds=3).start(3).noise_multiplier,
    )
    assert 2.99 < result.privacy["epsilon"] <= 3.0


def test_with_local_privacy_devices_are_told_to_add_noise_and_asked_for_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path, three(), privacy={**NOISY, "mode": "local", "noise_multiplier": 2.0})
    result = world.run().run()
    broadcasts = world.exchanges[0].broadcasts
    assert {broadcast.fields["noise_std"] for broadcast in broadcasts if broadcast.kind == TRAIN} == {4.0}
    assert not [broadcast for broadcast in broadcasts if broadcast.kind == EVALUATE]
    assert world.models()[0] == pytest.approx((1 + 2 + 1.75) / 3)  # these devices add none; equal weights
    assert result.privacy["relation"] == "replace"
