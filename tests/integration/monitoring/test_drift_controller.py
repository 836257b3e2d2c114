from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from integration.monitoring.drift_world import DriftWorld, make_edges
from integration.rollouts.control_plane import KillSwitch, dump, reopen_control_plane, run_with_kills
from skerry_contract.histogram import encode_counts
from skerry_contract.v1.telemetry_pb2 import DriftReport
from skerry_server.audit import ledger
from skerry_server.incidents import service as incidents
from skerry_server.monitoring.controller import DriftController
from skerry_server.monitoring.judge import DriftSettings
from skerry_server.store.tables import AuditRow, Device, DriftWindow, Incident, Release


@pytest.fixture
def world(tmp_path: Path) -> DriftWorld:
    return DriftWorld(tmp_path / "plane")


def open_incidents(world: DriftWorld) -> list[tuple[Any, ...]]:
    return sorted(dump(world.context, Incident, "kind", "release_id", "state", "severity", "device_ids"))


def test_drift_on_two_devices_is_one_incident_that_names_both(world: DriftWorld) -> None:
    controller = DriftController(world.context)
    for _ in range(4):
        world.round()
    controller.step()
    assert world.statuses("d0") == ["baseline", "baseline", "ok", "ok"]
    assert open_incidents(world) == []
    for _ in range(2):
        world.round(shifts={"d0": 0.8, "d2": 0.8})
        controller.step()
    assert world.statuses("d0")[-1] == "drift"
    assert world.statuses("d1")[-2:] == ["ok", "ok"]
    assert [row[:3] + row[4:] for row in open_incidents(world)] == [("drift", "r1", "detected", ["d0", "d2"])]
    assert open_incidents(world)[0][3] in ("act", "critical")
    evidence = dump(world.context, Incident, "evidence")[0][0]
    assert set(evidence) == {"d0", "d2"}
    assert next(iter(evidence["d0"]["psi_corrected"])) == "tilt"
    with world.context.database.transaction() as session:
        assert ledger.verify(session) is None


def test_small_windows_are_added_up_and_never_called_ok(world: DriftWorld) -> None:
    controller = DriftController(world.context)
    for _ in range(2):
        world.report("d0", "r1", rows=300)
    for _ in range(5):
        world.report("d0", "r1", rows=90)
    controller.step()
    assert world.statuses("d0")[2:] == [
        "insufficient_data",
        "insufficient_data",
        "ok",
        "insufficient_data",
        "insufficient_data",
    ]
    assert [verdict["n"] for verdict in world.verdicts("d0")[2:]] == [90, 180, 270, 90, 180]
    assert world.verdicts("d0")[4]["windows"] == 3
    # Judged in two steps or one, it is the same.
    world.report("d0", "r1", rows=90)
    DriftController(world.context).step()
    assert (world.statuses("d0")[-1], world.verdicts("d0")[-1]["n"]) == ("ok", 270)


@pytest.mark.parametrize(
    ("name", "release_id", "changes", "reason"),
    [
        ("edges of another release", "r1", {"edges_sha256": "ab" * 32}, "edges: expected those of the release"),
        ("garbage", "r1", {"body": b"\xff\xff"}, "DriftReport"),
        ("no features", "r1", {"body": b""}, "3 features"),
        ("a release that is not known", "r7", {}, "there is no release 'r7'"),
        ("more counts than rows", "r1", {"rows": 300, "body": None}, "at most 1 counts"),
    ],
)
def test_unusable_reports_say_why_and_open_nothing(
    world: DriftWorld, name: str, release_id: str, changes: dict[str, Any], reason: str
) -> None:
    if changes.get("body", b"") is None:
        donor = DriftWorld(world.root / "donor", devices=1)
        donor.report("d0", "r1", rows=300)
        message = DriftReport.FromString(dump(donor.context, DriftWindow, "body")[0][0])
        message.rows = 1
        changes = {"body": message.SerializeToString()}
    world.report("d0", release_id, **changes)
    world.report("d1", "r1")
    DriftController(world.context).step()
    verdict = world.verdicts("d0")[0]
    assert (verdict["status"], verdict["features"]) == ("unusable", {}), name
    assert reason in verdict["detail"]
    assert world.statuses("d1") == ["baseline"]
    assert open_incidents(world) == []


def test_broken_sensor_is_a_data_quality_incident_and_no_drift(world: DriftWorld) -> None:
    controller = DriftController(world.context)
    for _ in range(3):
        world.round()
    for _ in range(3):
        world.report("d0", "r1", shift=3.0, missing=60)
        world.report("d1", "r1")
    controller.step()
    assert world.statuses("d0") == ["baseline", "baseline", "ok", "data_quality", "data_quality", "data_quality"]
    assert world.verdicts("d0")[-1]["quality"]["missing"]["rate"] == 0.2
    assert [row[:3] + row[4:] for row in open_incidents(world)] == [("data-quality", "r1", "detected", ["d0"])]
    with world.context.database.transaction() as session:
        assert incidents.quarantined_device_ids(session, "digits") == {"d0"}
        assert incidents.quarantined_device_ids(session, "har") == set()


def test_faulty_windows_are_no_baseline(world: DriftWorld) -> None:
    world.report("d0", "r1", shift=4.0, schema_errors=100)
    for _ in range(3):
        world.report("d0", "r1")
    DriftController(world.context).step()
    assert world.statuses("d0") == ["data_quality", "baseline", "baseline", "ok"]
    assert world.verdicts("d0")[-1]["m"] == 600


def test_ordinary_release_keeps_the_baseline_and_a_cure_begins_a_new_one(world: DriftWorld) -> None:
    controller = DriftController(world.context)
    for _ in range(2):
        world.report("d0", "r1")
    world.release("r2", parent="r1")
    world.report("d0", "r2", shift=0.9)
    controller.step()
    assert world.statuses("d0")[:2] == ["baseline", "baseline"]
    assert world.verdicts("d0")[2]["flagged"]
    assert "predictions" not in world.verdicts("d0")[-1]  # another model: its predictions have no baseline yet
    world.release("r3", parent="r2", incident_id="incident-x")
    for _ in range(3):
        world.report("d0", "r3", shift=0.9)
    controller.step()
    assert world.statuses("d0")[3:] == ["baseline", "baseline", "ok"]
    assert "predictions" in world.verdicts("d0")[-1]
    world.release("r4", parent="r3", edges=make_edges(seed=5))
    world.report("d0", "r4")
    controller.step()
    assert world.statuses("d0")[-1] == "baseline"  # other edges: counts cannot be compared


def test_late_reports_of_a_release_that_was_left_open_nothing(world: DriftWorld) -> None:
    for _ in range(2):
        world.round()
    for _ in range(3):
        world.report("d0", "r1", shift=1.0)
    world.release("r2", parent="r1")
    DriftController(world.context).step()
    assert world.statuses("d0")[-1] == "drift"
    assert open_incidents(world) == []


def test_release_whose_bundle_is_away_waits_and_the_others_go_on(world: DriftWorld) -> None:
    world.report("d0", "r1")
    world.release("r2", parent="r1")
    world.report("d1", "r2")
    with world.context.database.transaction() as session:
        bundle = session.get_one(Release, "r1").bundle_sha256
        session.get_one(Release, "r1").bundle_sha256 = "0" * 64
    controller = DriftController(world.context)
    controller.step()
    assert (world.statuses("d0"), world.statuses("d1")) == ([""], ["baseline"])
    with world.context.database.transaction() as session:
        session.get_one(Release, "r1").bundle_sha256 = bundle
    controller.step()
    assert world.statuses("d0") == ["baseline"]


def test_dismissed_drift_stays_dismissed_and_a_new_device_is_news(world: DriftWorld) -> None:
    controller = DriftController(world.context)
    for _ in range(2):
        world.round()
    for _ in range(2):
        world.round(shifts={"d0": 0.9})
    controller.step()
    with world.context.database.transaction() as session:
        (incident,) = incidents.list_incidents(session)
        incidents.dismiss(session, incident.id, actor="ada", reason="new phone case")
    world.round(shifts={"d0": 0.9})
    controller.step()
    assert world.statuses("d0")[-1] == "drift"
    assert len(open_incidents(world)) == 1
    for _ in range(2):
        world.round(shifts={"d0": 0.9, "d1": 0.9})
    controller.step()
    assert sorted((row[2], row[4]) for row in open_incidents(world)) == [
        ("detected", ["d0", "d1"]),
        ("dismissed", ["d0"]),
    ]


def test_killed_before_any_write_every_window_is_judged_once(tmp_path: Path) -> None:
    original = DriftWorld(tmp_path / "original", devices=2)
    for _ in range(2):
        original.round()
    for _ in range(2):
        original.round(shifts={"d0": 0.9, "d1": 0.9})
    original.context.close()

    def run_killed_at(at: int) -> tuple[bool, list[Any]]:
        root = tmp_path / f"plane-{at}"
        shutil.copytree(original.root, root)
        context = reopen_control_plane(root)
        switch = KillSwitch(context.database)
        killed = run_with_kills(at, switch, lambda: DriftController(context), DriftController.step)
        end = [
            dump(context, DriftWindow, "id", "judged", "verdict"),
            dump(context, Incident, "kind", "state", "severity", "device_ids", "evidence"),
            dump(context, AuditRow, "sequence", "action"),
        ]
        context.close()
        return killed, end

    undisturbed = run_killed_at(0)[1]
    assert undisturbed[1][0][3] == ["d0", "d1"]
    kills = 0
    for at in range(1, 100):
        killed, end = run_killed_at(at)
        if not killed:
            break
        kills += 1
        assert end == undisturbed, f"killed before write {at}"
    assert kills > 15


def test_a_lying_device_cannot_make_the_others_drift(world: DriftWorld) -> None:
    """Its report claims 2**40 rows; the fleet's verdicts are what they would be without it."""
    for _ in range(4):
        world.round()
    controller = DriftController(world.context)
    controller.step()
    template = DriftReport.FromString(dump(world.context, DriftWindow, "body")[0][0])
    template.rows = 1 << 40
    for message in template.features:
        message.CopyFrom(encode_counts([1 << 40] + [0] * 29))
    for _ in range(3):
        world.report("d0", "r1", body=template.SerializeToString())
        for name in ("d1", "d2", "d3"):
            world.report(name, "r1")
    controller.step()
    assert world.statuses("d0")[-1] == "drift"
    for name in ("d1", "d2", "d3"):
        assert set(world.statuses(name)[2:]) <= {"ok", "suspect"}
    assert [row[4] for row in open_incidents(world)] == [["d0"]]


def test_settings_of_the_rule_are_the_callers(world: DriftWorld) -> None:
    strict = dataclasses.replace(DriftSettings(), minimum_rows=1_000, baseline_windows=1, baseline_rows=300)
    for _ in range(3):
        world.report("d0", "r1")
    DriftController(world.context, settings=strict).step()
    assert world.statuses("d0") == ["baseline", "insufficient_data", "insufficient_data"]
    assert dump(world.context, Device, "id")
