"""Secure, private, buffered and paused campaigns through whole processes: SuperLink, campaign job, training devices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from integration.federation.fleet import Fleet, running_fleet
from skerry_server.federation import campaign_machine, service

pytestmark = pytest.mark.soak  # test_campaign_processes has the one that `make test` runs

#: Four devices: more than two thirds of them are left when one dies within a secure round.
FOUR = ("c00", "c01", "c02", "c03")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), FOUR) as fleet:
        yield fleet


def test_a_secure_campaign_with_distributed_noise_goes_on_after_its_process_and_the_superlink_are_killed(
    fleet: Fleet,
) -> None:
    fleet.mend()
    fleet.up()
    fleet.hold("c03")
    privacy = {"mode": "distributed", "clip_norm": 2.0, "noise_multiplier": 0.02, "delta": 1e-5}
    campaign_id = fleet.start(rounds=2, quorum=0.7, secure_aggregation=True, privacy=privacy)
    fleet.drive(lambda: fleet.training("c03", 1), what="c03 shared its secrets and trains")
    os.kill(fleet.job(campaign_id).pid, signal.SIGKILL)
    fleet.link.kill(signal.SIGKILL)
    fleet.link.start()
    (fleet.agent("c03").layout.run / "pause-training").unlink()
    candidate = fleet.delivered(campaign_id)
    rounds = fleet.rounds(campaign_id)
    assert [row.number for row in rounds] == [1, 2]
    assert all(row.accepted >= 3 for row in rounds)
    assert [row.privacy["rounds"] for row in rounds] == [1, 2]
    assert rounds[1].privacy["mode"] == "distributed"
    assert candidate.metrics["privacy_epsilon"] == rounds[1].privacy["epsilon"] > 0
    assert max(row.accuracy for row in rounds) > 0.5


def test_a_campaign_with_central_noise_says_what_it_spent(fleet: Fleet) -> None:
    fleet.mend()
    fleet.up()
    privacy = {"mode": "central", "clip": "adaptive", "clip_norm": 1.0, "noise_multiplier": 1.0, "target_epsilon": 8.0}
    campaign_id = fleet.start(rounds=9, privacy=privacy)
    candidate = fleet.delivered(campaign_id)
    rounds = fleet.rounds(campaign_id)
    assert 1 <= len(rounds) < 9  # the budget ended it
    assert fleet.job(campaign_id).result["ended"].startswith(f"round {len(rounds) + 1} would spend epsilon")
    assert rounds[-1].privacy["epsilon"] <= 8.0
    assert candidate.metrics["privacy_epsilon"] == rounds[-1].privacy["epsilon"]
    assert len({row.metrics["privacy_clip_norm"] for row in rounds}) == len(rounds)


def test_a_campaign_with_local_noise_asks_for_nothing_else(fleet: Fleet) -> None:
    fleet.mend()
    fleet.up()
    privacy = {"mode": "local", "clip_norm": 1.0, "noise_multiplier": 0.01}
    campaign_id = fleet.start(rounds=2, privacy=privacy)
    candidate = fleet.delivered(campaign_id)
    rounds = fleet.rounds(campaign_id)
    assert [(row.accepted, row.loss) for row in rounds] == [(4, 0.0), (4, 0.0)]  # no device tells its loss
    assert "device_accuracy" not in candidate.metrics
    assert candidate.metrics["privacy_epsilon"] == rounds[1].privacy["epsilon"]


def test_a_buffered_campaign_does_not_wait_for_a_slow_device(fleet: Fleet) -> None:
    fleet.mend()
    fleet.up()
    slow = fleet.hold("c03")
    campaign_id = fleet.start(strategy="fedbuff", rounds=6, quorum=0.5, strategy_settings={"buffer": 2})
    fleet.drive(lambda: len(fleet.rounds(campaign_id)) >= 2, what="versions are committed without the slow device")
    assert not any("c03" in fleet.updates(campaign_id, number) for number in (1, 2))
    slow.unlink()
    fleet.delivered(campaign_id)
    rounds = fleet.rounds(campaign_id)
    assert [row.number for row in rounds] == [1, 2, 3, 4, 5, 6]
    with_it = [row.number for row in rounds if "c03" in fleet.updates(campaign_id, row.number)]
    assert max(row.accuracy for row in rounds) > 0.8
    if with_it:  # what it had learned from version 1 counts, late
        assert with_it[0] > 2


def test_a_running_campaign_is_paused_and_resumed(fleet: Fleet) -> None:
    fleet.mend()
    fleet.up()
    held = fleet.hold("c03")
    campaign_id = fleet.start(rounds=2, quorum=1.0)
    fleet.drive(lambda: len(fleet.updates(campaign_id, 1)) == 3, what="three updates of round 1 are journalled")
    before = fleet.received(campaign_id)
    with fleet.context.database.transaction() as session:
        service.pause_campaign(session, campaign_id, reason="the line is needed", actor="test")
    fleet.drive(lambda: fleet.job(campaign_id).state == "done", what="its process ends")
    assert fleet.campaign(campaign_id).state == campaign_machine.PAUSED
    assert fleet.rounds(campaign_id) == []
    held.unlink()
    with fleet.context.database.transaction() as session:
        service.resume_campaign(session, campaign_id, actor="test")
    fleet.delivered(campaign_id)
    assert [(row.number, row.accepted) for row in fleet.rounds(campaign_id)] == [(1, 4), (2, 4)]
    after = fleet.received(campaign_id)
    assert {key: after[key] for key in before} == before
