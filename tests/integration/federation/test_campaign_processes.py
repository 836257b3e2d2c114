"""Campaigns through a real SuperLink, real devices and real job processes, any of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from integration.federation.fleet import Fleet, running_fleet
from integration.federation.rig import RELEASE_ID
from skerry_contract.calibration import decode_ranges
from skerry_server.clock import now_ms
from skerry_server.federation import campaign_machine, service
from skerry_server.registry.mlflow_registry import open_registry
from skerry_server.store.tables import Job


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


def test_a_campaign_from_invitation_to_candidate(fleet: Fleet) -> None:
    fleet.up()
    campaign_id = fleet.start(rounds=3, calibration="federated")
    candidate = fleet.delivered(campaign_id)
    rounds = fleet.rounds(campaign_id)
    assert [(row.number, row.accepted) for row in rounds] == [(1, 3), (2, 3), (3, 3)]
    assert max(row.accuracy for row in rounds) > 0.8  # the base model guesses: 0.1
    assert candidate.parent_release == RELEASE_ID
    assert candidate.metrics["device_accuracy"] > candidate.metrics["champion_device_accuracy"] + 0.5
    assert candidate.metrics["measuring_devices"] == 3

    with fleet.context.database.reading() as session:
        calibration = session.get_one(Job, service.job_id(campaign_id)).result["calibration"]
    assert (calibration["source"], calibration["devices"], calibration["reason"]) == ("devices", 3, "")
    told = decode_ranges(fleet.context.artifacts.get_bytes(calibration["ranges_sha256"]))
    assert told.ranges["rows"] == (0.0, 1.0)  # pixels from 0 to 16, scaled
    assert told.parameters_sha256.hex() == candidate.parameters_sha256

    row = fleet.campaign(campaign_id)
    assert int(row.flower_run_id) > 0
    client = open_registry(fleet.context.layout, fleet.context.config)._client
    history = client.get_metric_history(row.mlflow_run_id, "accuracy")
    assert [(entry.step, round(entry.value, 6)) for entry in history] == [
        (round_.number, round(round_.accuracy, 6)) for round_ in rounds
    ]
    artifacts = [item.path for item in client.list_artifacts(row.mlflow_run_id, "parameters")]
    assert artifacts == [f"parameters/round-000{number}.pb" for number in (1, 2, 3)]
    run = client.get_run(row.mlflow_run_id)
    assert (run.info.status, run.data.params["strategy"], run.data.params["proximal_mu"]) == (
        "FINISHED",
        "fedprox",
        "0.01",
    )


def test_superlink_campaign_process_and_device_are_killed_within_rounds(fleet: Fleet) -> None:
    fleet.up()
    held = fleet.hold("c02")
    campaign_id = fleet.start(rounds=3, quorum=0.6, round_deadline_ms=100_000)

    def waits_in(number: int) -> bool:
        return fleet.updates(campaign_id, number) == {"c00", "c01"}

    # Two of three devices are enough, and the third gets at least a second more: kill within it.
    fleet.drive(lambda: waits_in(1), what="two updates of round 1 are journalled")
    fleet.link.kill(signal.SIGKILL)
    held.unlink()
    fleet.link.start()
    fleet.drive(lambda: len(fleet.rounds(campaign_id)) >= 1, what="round 1 is committed all the same")

    before = fleet.received(campaign_id)
    os.kill(fleet.job(campaign_id).pid, signal.SIGKILL)
    fleet.agents[2].kill(signal.SIGKILL)
    fleet.delivered(campaign_id)
    assert fleet.job(campaign_id).attempts == 2
    assert [row.number for row in fleet.rounds(campaign_id)] == [1, 2, 3]
    assert all(row.accepted >= 2 for row in fleet.rounds(campaign_id))
    after = fleet.received(campaign_id)
    assert {key: after[key] for key in before} == before  # what was committed was neither lost nor repeated


def test_too_few_devices_fail_the_campaign_with_the_reason(fleet: Fleet) -> None:
    fleet.up()
    fleet.hold("c01")
    fleet.hold("c02")
    campaign_id = fleet.start(round_deadline_ms=4000)
    fleet.drive(lambda: fleet.campaign(campaign_id).state == campaign_machine.FAILED, what="it fails")
    detail = fleet.campaign(campaign_id).detail
    assert "round 1 of 2: 1 of at least 3 devices answered" in detail
    assert "c01" in detail
    assert fleet.updates(campaign_id, 1) == {"c00"}
    assert fleet.rounds(campaign_id) == []
    assert fleet.campaign(campaign_id).candidate_id == ""


def test_an_abort_ends_the_process(fleet: Fleet) -> None:
    fleet.up()
    fleet.hold("c02")
    campaign_id = fleet.start()
    fleet.drive(lambda: len(fleet.updates(campaign_id, 1)) == 2, what="a round is under way")
    with fleet.context.database.transaction() as session:
        service.abort_campaign(session, campaign_id, reason="wrong data", actor="test")
    fleet.drive(lambda: fleet.job(campaign_id).state == "failed", what="its process ends", seconds=30)
    assert "the campaign is aborted" in fleet.job(campaign_id).error
    assert fleet.campaign(campaign_id).state == campaign_machine.ABORTED
    assert now_ms() - fleet.campaign(campaign_id).updated_ms < 30_000


@pytest.mark.soak
def test_a_secure_campaign_recovers_a_device_that_is_killed_within_a_round(fleet: Fleet) -> None:
    fleet.join("c03")  # more than two thirds of four are left when one dies
    fleet.up()
    fleet.hold("c03")
    privacy = {"mode": "distributed", "clip_norm": 2.0, "noise_multiplier": 0.02, "delta": 1e-5}
    campaign_id = fleet.start(rounds=2, quorum=0.7, secure_aggregation=True, privacy=privacy)
    fleet.drive(lambda: fleet.training("c03", 1), what="c03 shared its secrets and trains")
    fleet.agent("c03").kill(signal.SIGKILL)
    candidate = fleet.delivered(campaign_id)
    rounds = fleet.rounds(campaign_id)
    assert [(row.number, row.accepted) for row in rounds] == [(1, 3), (2, 3)]
    assert list(rounds[0].failures) == ["c03"]
    assert max(row.accuracy for row in rounds) > 0.5  # with noise; the base model guesses: 0.1
    for number in (1, 2):
        assert fleet.updates(campaign_id, number) == {"secure-sum"}  # nobody's own update lies anywhere
    assert [row.privacy["rounds"] for row in rounds] == [1, 2]
    assert candidate.metrics["privacy_epsilon"] == rounds[1].privacy["epsilon"] > 0


def test_the_server_side_of_a_campaign_is_heavy_only_in_its_own_process() -> None:
    script = (
        "import sys, skerry_server.federation.service, skerry_server.federation.controller\n"
        "print([name for name in ('torch', 'flwr', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
