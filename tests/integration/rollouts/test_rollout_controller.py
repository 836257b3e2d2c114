from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.rollouts.control_plane import (
    KillSwitch,
    add_release,
    dump,
    open_control_plane,
    run_with_kills,
    seed,
)
from skerry_server.audit import ledger
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.fleet.service import create_cohort
from skerry_server.registry import champions
from skerry_server.rollouts import rollout_machine, service
from skerry_server.rollouts.controller import RolloutController
from skerry_server.store.tables import AuditRow, Device, Release, Rollout, RolloutDevice


@dataclass
class Fleet:
    """Devices that obey or misbehave, one reaction per call; ``clock`` is the only time there is."""

    context: ServerContext
    behaviour: dict[str, str] = field(default_factory=dict)
    now: int = 1_000_000

    def clock(self) -> int:
        return self.now

    def controller(self) -> RolloutController:
        return RolloutController(self.context, clock=self.clock)

    def react(self) -> None:
        """Every online device answers what is wanted of it."""
        with self.context.database.transaction() as session:
            for device in session.query(Device).all():
                behaviour = self.behaviour.get(device.id, "obeys")
                if behaviour in ("offline", "silent") or device.desired_sequence == device.reported_sequence:
                    continue
                device.reported_sequence = device.desired_sequence
                device.reported_rollout = device.desired_rollout
                wanted = device.desired_release
                if not wanted or wanted == device.active_release:
                    continue
                if behaviour == "refuses" and wanted == "r2":
                    device.update_status, device.update_detail = "rolled_back", "golden check failed"
                elif behaviour == "quarantines" and wanted == "r2":
                    device.update_status, device.update_detail = "quarantined", "bad digest"
                else:
                    device.active_release, device.update_status = wanted, "committed"
                    errors = 50 if behaviour == "errs" and wanted == "r2" else 0
                    device.health = {"release_id": wanted, "requests": 100, "errors": errors}

    def run(self, controller: RolloutController, *, steps: int = 30, tick_ms: int = 1_000) -> None:
        for _ in range(steps):
            controller.step()
            self.react()
            self.now += tick_ms

    def start(self, **more: Any) -> str:
        usual = {
            "release_id": "r2",
            "cohort_id": "all",
            "canary_percent": 25,
            "probation_ms": 5_000,
            "actor": "ada",
        }
        with self.context.database.transaction() as session:
            rollout = service.start_rollout(session, **{**usual, **more})
            rollout.stage_started_ms = self.now
            return rollout.id

    def state(self) -> str:
        return str(dump(self.context, Rollout, "state")[0][0])

    def rows(self) -> dict[str, tuple[str, str]]:
        return {row[0]: (row[1], row[2]) for row in dump(self.context, RolloutDevice, "device_id", "stage", "state")}

    def chain(self) -> list[str]:
        rows = dump(self.context, AuditRow, "action", "detail")
        return [detail["to"] for action, detail in rows if action.startswith("rollout.") and "to" in detail]


DEVICES = [f"d{number}" for number in range(8)]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    context = open_control_plane(tmp_path / "plane")
    seed(context, devices=DEVICES, releases=["r1", "r2", "r3"], active="r1")
    return Fleet(context)


def set_devices(fleet: Fleet, device_ids: list[str], **columns: Any) -> None:
    with fleet.context.database.transaction() as session:
        for device_id in device_ids:
            device = session.get_one(Device, device_id)
            for name, value in columns.items():
                setattr(device, name, value)


def test_release_goes_to_canaries_then_to_the_fleet_and_becomes_champion(fleet: Fleet) -> None:
    fleet.start()
    controller = fleet.controller()
    controller.step()
    canaries = [name for name, (stage, state) in fleet.rows().items() if stage == "canary" and state == "instructed"]
    assert len(canaries) == 2  # 25 % of 8
    wanted = dict(dump(fleet.context, Device, "id", "desired_release"))
    assert {name for name, release in wanted.items() if release == "r2"} == set(canaries)

    fleet.run(controller)

    assert fleet.chain() == ["canary", "fleet", "finished"]
    assert set(fleet.rows().values()) == {("canary", "healthy"), ("fleet", "healthy")}
    assert set(dump(fleet.context, Device, "active_release", "desired_sequence", "desired_probation_ms")) == {
        ("r2", 1, 5_000)
    }
    with fleet.context.database.transaction() as session:
        champion = champions.champion(session, "digits")
        assert champion is not None
        assert champion.id == "r2"
        assert ledger.verify(session) is None


@pytest.mark.parametrize(
    ("name", "behaviour", "chain", "reason"),
    [
        ("canary rolls itself back", "refuses", ["canary", "rolling_back", "rolled_back"], "golden check failed"),
        ("canary quarantines", "quarantines", ["canary", "rolling_back", "rolled_back"], "bad digest"),
        ("canary answers with errors", "errs", ["canary", "rolling_back", "rolled_back"], "50 of 100 requests failed"),
        ("canary is silent", "silent", ["canary", "rolling_back", "rolled_back"], "silent until the deadline"),
    ],
)
def test_bad_canaries_bring_everything_back(
    fleet: Fleet, name: str, behaviour: str, chain: list[str], reason: str
) -> None:
    fleet.start(stage_deadline_ms=10_000)
    fleet.behaviour = dict.fromkeys(DEVICES, behaviour)
    controller = fleet.controller()
    details = set()
    for _ in range(40):
        fleet.run(controller, steps=1)
        details |= {row[0] for row in dump(fleet.context, RolloutDevice, "detail")}
    assert fleet.chain() == chain, name
    assert any(reason in detail for detail in details)
    assert set(dump(fleet.context, Device, "active_release")) == {("r1",)}
    touched = [row for row in dump(fleet.context, Device, "desired_release", "desired_sequence") if row[1]]
    assert touched == [("r1", 2), ("r1", 2)]
    with fleet.context.database.transaction() as session:
        assert champions.champion(session, "digits") is None


def test_one_failure_in_eight_is_tolerated_by_the_fleet_stage(fleet: Fleet) -> None:
    fleet.start()
    controller = fleet.controller()
    controller.step()
    rest = [name for name, (stage, _) in fleet.rows().items() if stage == "fleet"]
    fleet.behaviour = {rest[0]: "refuses"}
    fleet.run(controller)
    assert fleet.state() == "finished"
    assert fleet.rows()[rest[0]] == ("fleet", "failed")
    assert dump(fleet.context, Device, "active_release").count(("r2",)) == 7


def test_two_failures_in_the_fleet_stage_roll_back_the_healthy_ones_too(fleet: Fleet) -> None:
    fleet.start()
    controller = fleet.controller()
    controller.step()
    rest = [name for name, (stage, _) in fleet.rows().items() if stage == "fleet"]
    fleet.behaviour = {rest[0]: "refuses", rest[1]: "errs"}
    fleet.run(controller)
    assert fleet.chain() == ["canary", "fleet", "rolling_back", "rolled_back"]
    assert set(dump(fleet.context, Device, "active_release", "desired_release")) == {("r1", "r1")}
    assert {state for _, state in fleet.rows().values()} == {"restored"}
    # Going back is a new approval of the old release, above every one before: devices refuse to go below what they had.
    assert dump(fleet.context, Release, "id", "approved_version") == [("r1", 4), ("r2", 2), ("r3", 3)]
    assert dump(fleet.context, AuditRow, "action").count(("release.approve",)) == 1


def test_offline_devices_do_not_hold_the_fleet_and_are_followed_when_they_return(fleet: Fleet) -> None:
    set_devices(fleet, ["d0", "d1"], online=False)
    fleet.behaviour = {"d0": "offline", "d1": "offline"}
    fleet.start()
    controller = fleet.controller()
    fleet.run(controller, steps=60)
    assert fleet.state() == "finished"
    assert fleet.rows()["d0"] == ("fleet", "instructed")
    assert "offline" in dump(fleet.context, Rollout, "detail")[0][0]
    set_devices(fleet, ["d0"], online=True)
    fleet.behaviour = {"d1": "offline"}
    fleet.run(controller, steps=3)
    assert fleet.rows()["d0"] == ("fleet", "healthy")
    assert fleet.rows()["d1"] == ("fleet", "instructed")


def test_without_an_online_device_it_waits_says_so_and_is_aborted_at_the_deadline(fleet: Fleet) -> None:
    set_devices(fleet, DEVICES, online=False)
    fleet.start(stage_deadline_ms=5_000)
    controller = fleet.controller()
    controller.step()
    assert dump(fleet.context, Rollout, "state", "detail") == [("pending", "waits for an online device to begin with")]
    fleet.run(controller, steps=10)
    assert fleet.state() == "aborted"
    assert set(dump(fleet.context, Device, "desired_sequence")) == {(0,)}


def test_devices_that_run_the_release_are_done_and_never_taken_back(fleet: Fleet) -> None:
    set_devices(fleet, DEVICES[:7], active_release="r2")
    fleet.behaviour = {"d7": "refuses"}
    fleet.start()
    fleet.run(fleet.controller())
    assert fleet.state() == "rolled_back"
    assert dump(fleet.context, Device, "id", "active_release", "desired_sequence")[:7] == [
        (name, "r2", 0) for name in DEVICES[:7]
    ]


def test_first_release_of_a_device_is_kept_on_rollback(fleet: Fleet) -> None:
    set_devices(fleet, DEVICES, active_release="", update_status="idle")
    fleet.start(canary_percent=100)
    fleet.behaviour = {"d0": "errs"}
    fleet.run(fleet.controller())
    assert fleet.state() == "rolled_back"
    assert set(dump(fleet.context, Device, "desired_release", "active_release")) == {("", "r2")}
    assert {row[0] for row in dump(fleet.context, RolloutDevice, "detail")} == {
        "keeps the release: it ran no other before"
    }


def test_abort_before_instructions_touches_no_device_and_afterwards_rolls_back(fleet: Fleet) -> None:
    first = fleet.start()
    with fleet.context.database.transaction() as session:
        assert service.abort_rollout(session, first, reason="typo", actor="ada").state == "aborted"
    second = fleet.start()
    controller = fleet.controller()
    controller.step()
    with fleet.context.database.transaction() as session:
        assert service.abort_rollout(session, second, reason="noise", actor="ada").state == "rolling_back"
        with pytest.raises(ConflictError, match="rolling_back"):
            service.abort_rollout(session, second, reason="again", actor="ada")
        with pytest.raises(InvalidRequestError, match="reason"):
            service.abort_rollout(session, second, reason=" ", actor="ada")
    fleet.run(controller, steps=5)
    with fleet.context.database.transaction() as session:
        rollout = session.get_one(Rollout, second)
        assert rollout.state == "rolled_back"
        assert rollout.detail.startswith("aborted by ada: noise")


def test_withdrawn_release_rolls_back(fleet: Fleet) -> None:
    fleet.start()
    controller = fleet.controller()
    fleet.run(controller, steps=1)
    with fleet.context.database.transaction() as session:
        session.get_one(Release, "r2").state = "withdrawn"
    fleet.run(controller, steps=5)
    assert fleet.state() == "rolled_back"


def test_device_that_another_rollout_took_over_is_not_taken_back(fleet: Fleet) -> None:
    fleet.start(canary_percent=100)
    controller = fleet.controller()
    controller.step()
    set_devices(fleet, ["d0"], desired_rollout="rollout-later", desired_release="r3", desired_sequence=7)
    fleet.behaviour = {"d1": "refuses"}
    fleet.run(controller)
    assert fleet.state() == "rolled_back"
    assert dump(fleet.context, Device, "id", "desired_release", "desired_sequence")[0] == ("d0", "r3", 7)


def test_bad_requests_are_refused_and_change_nothing(fleet: Fleet) -> None:
    fleet.start()
    before = dump(fleet.context, Rollout, "id"), dump(fleet.context, AuditRow, "sequence")
    with fleet.context.database.transaction() as session:
        add_release(session, "r9", sequence=9)
        session.flush()
        session.get_one(Release, "r9").state = "withdrawn"
        create_cohort(session, name="nobody", selector={"room": "none"}, actor="ada")
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"release_id": "nothing"}, NotFoundError, "no release 'nothing'"),
        ({"cohort_id": "nothing"}, NotFoundError, "no cohort 'nothing'"),
        ({"canary_percent": 0}, InvalidRequestError, "canary_percent: expected 1 to 100, got '0'"),
        ({"canary_percent": 101}, InvalidRequestError, "canary_percent"),
        ({"probation_ms": -1}, InvalidRequestError, "probation_ms"),
        ({"stage_deadline_ms": 0}, InvalidRequestError, "stage_deadline_ms"),
        ({"release_id": "r9"}, ConflictError, "r9 is withdrawn"),
        ({"cohort_id": "nobody"}, ConflictError, "has no device"),
        ({"release_id": "r3"}, ConflictError, "device d0 is in rollout"),
    ]
    for change, error, text in refused:
        with pytest.raises(error, match=text):
            fleet.start(**change)
    assert dump(fleet.context, Rollout, "id") == before[0]
    assert len(dump(fleet.context, AuditRow, "sequence")) == len(before[1]) + 1  # the cohort


END = (
    (Rollout, ("state", "detail")),
    (RolloutDevice, ("device_id", "state", "detail", "previous_release")),
    (Device, ("id", "active_release", "desired_release", "desired_sequence")),
    (AuditRow, ("action", "sequence")),
)


@pytest.mark.parametrize("behaviour", ["obeys", "errs"])
def test_killed_before_any_write_the_next_controller_reaches_the_same_end(tmp_path: Path, behaviour: str) -> None:
    def run_killed_at(at: int) -> tuple[bool, list[Any]]:
        context = open_control_plane(tmp_path / f"plane-{at}")
        seed(context, devices=["d0", "d1", "d2"], releases=["r1", "r2"], active="r1")
        fleet = Fleet(context, behaviour={"d0": "obeys", "d1": behaviour, "d2": behaviour})
        with context.database.transaction() as session:
            # Inserted, not started by the service: the identifier decides who is canary, and every run needs the same.
            session.add(
                Rollout(
                    id="rollout-fixed",
                    release_id="r2",
                    task="digits",
                    cohort_id="all",
                    state="pending",
                    canary_percent=1,
                    probation_ms=0,
                    stage_started_ms=fleet.now,
                    created_by="ada",
                    created_ms=1,
                    updated_ms=1,
                )
            )
            session.flush()
            session.add_all(
                RolloutDevice(rollout_id="rollout-fixed", device_id=name, stage="fleet") for name in ("d0", "d1", "d2")
            )
        switch = KillSwitch(context.database)

        def work(controller: RolloutController) -> None:
            while fleet.state() in rollout_machine.ACTIVE:
                counting, switch.at = switch.at, switch.at
                controller.step()
                switch.at = 0  # the devices are not killed
                count = switch.count
                fleet.react()
                switch.at, switch.count = counting, count
                fleet.now += 1_000

        killed = run_with_kills(at, switch, fleet.controller, work)
        fleet.run(fleet.controller(), steps=1)
        end = [dump(context, table, *columns) for table, columns in END]
        context.close()
        return killed, end

    undisturbed = run_killed_at(0)[1]
    assert undisturbed[0][0][0] == ("finished" if behaviour == "obeys" else "rolled_back")
    kills = 0
    for at in range(1, 200):
        killed, end = run_killed_at(at)
        if not killed:
            break
        kills += 1
        assert end == undisturbed, f"killed before write {at}"
    assert kills > 12


def test_every_state_of_a_rollout_row_is_one_of_the_machine(fleet: Fleet) -> None:
    fleet.start()
    controller = fleet.controller()
    for _ in range(12):
        controller.step()
        assert fleet.state() in rollout_machine.TRANSITIONS
        assert {state for _, state in fleet.rows().values()} <= set(rollout_machine.DEVICE_TRANSITIONS)
        fleet.react()
        fleet.now += 500
