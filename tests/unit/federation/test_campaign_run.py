"""Whole campaigns over fake devices and a real journal, killed and resumed at every point."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from skerry_contract.campaign import EVALUATE, TRAIN
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_server.federation.exchange import ExchangeLostError
from skerry_server.federation.rounds.campaign_run import OPENINGS
from skerry_server.federation.rounds.journal import RoundRecord, State
from skerry_server.federation.rounds.round_loop import RoundFailedError
from skerry_server.federation.rounds.updates import Payload, Update
from skerry_server.store.tables import CampaignRound, CampaignUpdate
from unit.federation.fakes import FakeDevice
from unit.federation.world import BASE, KilledError, World, three


def test_a_campaign_by_hand(tmp_path: Path) -> None:
    world = World(tmp_path, three())
    result = world.run().run()
    assert world.models() == pytest.approx([1.75, 3.5, 5.25], rel=1e-6)
    assert [record.accuracy for record in world.journal.rounds()] == pytest.approx([0.175, 0.35, 0.525])
    assert (result.best.number, result.rounds) == (3, 3)
    assert result.metrics["holdout_accuracy"] == pytest.approx(0.525)
    assert result.metrics["holdout_accuracy_champion"] == 0.0
    assert result.metrics["device_accuracy"] == pytest.approx(0.6)
    assert "accuracy_drifted" not in result.metrics
    assert world.heard == [1, 2, 3]
    assert world.exchanges[0].completed
    first = world.journal.rounds()[0]
    assert (first.invited, first.accepted, first.loss) == (3, 3, 0.5)
    assert first.metrics["examples"] == 80
    assert first.metrics["device_accuracy_before"] == pytest.approx(0.6)
    assert not list(tmp_path.glob("updates/*"))  # parameters of single devices are not kept
    with world.database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(CampaignUpdate)) == 9


def test_the_best_round_need_not_be_the_last(tmp_path: Path) -> None:
    world = World(tmp_path, three())
    world.accuracy = lambda level: 1 - abs(level - 3.5) / 10
    assert world.run().run().best.number == 2
    asked = [broadcast for broadcast in world.exchanges[0].broadcasts if broadcast.kind == EVALUATE]
    # The base comes last, and says that the campaign asks for nothing more.
    assert [(broadcast.group, broadcast.fields["last"]) for broadcast in asked] == [
        ("evaluate-2", 0),
        ("evaluate-0", 1),
    ]


@pytest.mark.parametrize("kill_after", [1, 2, 3])
def test_a_kill_between_rounds_continues_behind_the_last_commit(tmp_path: Path, kill_after: int) -> None:
    world = World(tmp_path, three())
    world.kill_after_commits = kill_after
    with pytest.raises(KilledError):
        world.run().run()
    assert len(world.journal.rounds()) == kill_after
    world.kill_after_commits = -1
    world.heard.clear()
    result = world.run().run()
    assert world.models() == pytest.approx([1.75, 3.5, 5.25], rel=1e-6)
    assert (result.rounds, world.heard) == (3, [1, 2, 3])
    rounds_asked = [b.group for b in world.exchanges[-1].broadcasts if b.kind == TRAIN]
    assert rounds_asked == [str(number) for number in range(kill_after + 1, 4)]


def test_a_kill_within_a_round_keeps_the_updates_that_counted(tmp_path: Path) -> None:
    devices = three()
    world = World(tmp_path, devices, quorum=1.0)
    devices[2].delay_s = 5.0
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if len(world.journal.recorded(1)) == 2:
            raise KilledError

    world.clock.sleep = sleep  # type: ignore[method-assign]  # the moment of the kill
    with pytest.raises(KilledError):
        world.run().run()
    assert world.journal.rounds() == []
    assert sorted(update.device_id for update in world.journal.recorded(1)) == ["a", "b"]
    world.clock.sleep = real  # type: ignore[method-assign]
    world.run().run()
    assert world.models() == pytest.approx([1.75, 3.5, 5.25], rel=1e-6)
    assert [device.asked for device in devices[:2]] == [5, 5]  # 3 rounds and 2 measurements: round 1 was not repeated


def test_a_damaged_journalled_update_is_asked_for_again(tmp_path: Path) -> None:
    devices = three()
    world = World(tmp_path, devices)
    state: State = {"w": np.full(2, 9.0, np.float32)}
    update = Update(
        "a",
        10,
        state,
        Payload("float32", encode_bundle(state)),
        {"loss": 0.5, "seconds": 0.1, "validation_examples": 0.0},
    )
    world.journal.record(1, update)
    spooled = next(path for path in world.spool.rglob("*") if path.is_file())
    spooled.write_bytes(b"damaged")
    world.run().run()
    assert world.models()[0] == 1.75


@pytest.mark.parametrize("lost_in_round", [1, 2, 3])
def test_a_lost_superlink_is_followed_by_a_new_run(tmp_path: Path, lost_in_round: int) -> None:
    devices = three()
    devices[0].faults = deque(["" for _ in range(lost_in_round - 1)] + ["lost"])
    devices[0].delay_s = 0.3  # after the others, whose updates are journalled by then
    world = World(tmp_path, devices, quorum=1.0)
    result = world.run().run()
    assert world.models() == pytest.approx([1.75, 3.5, 5.25], rel=1e-6)
    assert (result.rounds, len(world.exchanges)) == (3, 2)
    assert not world.exchanges[0].completed
    assert world.exchanges[1].completed
    assert [device.asked for device in devices] == [6, 5, 5]


def test_a_superlink_that_stays_away_gives_up_after_some_openings(tmp_path: Path) -> None:
    world = World(tmp_path, three())
    world.openings_that_fail = 99
    with pytest.raises(ExchangeLostError):
        world.run().run()
    assert world.openings_that_fail == 99 - OPENINGS
    world.openings_that_fail = OPENINGS - 1
    assert world.run().run().rounds == 3


def test_too_few_devices_fail_the_campaign_and_leave_the_journal_whole(tmp_path: Path) -> None:
    devices = three()
    devices[0].faults = deque(["", *["silent"] * 9])
    devices[1].faults = deque(["", *["refuse"] * 9])
    world = World(tmp_path, devices)
    with pytest.raises(RoundFailedError, match="1 of at least 2 devices answered") as caught:
        world.run().run()
    assert caught.value.failures["b"].startswith("few-samples: 3 labelled samples")
    assert world.models() == [1.75]
    assert [update.device_id for update in world.journal.recorded(2)] == ["c"]


def test_an_incident_is_measured_on_its_devices(tmp_path: Path) -> None:
    devices = three()
    world = World(tmp_path, devices)
    world.incident_devices = ("a", "b")
    world.accuracy = lambda level: 0.9  # the holdout does not see the drift
    # Models 0 (base), 1 and 2 are judged in rounds 1 to 3; then last round, result and base are measured.
    figures = {"a": deque([0.2, 0.5, 0.9, 0.4, 0.9, 0.2]), "b": deque([0.4, 0.5, 0.7, 0.4, 0.7, 0.4])}

    class Judge(FakeDevice):
        def answer(self, broadcast: object, fault: str) -> object:  # type: ignore[override]
            if self.name in figures:
                self.accuracy = figures[self.name].popleft()
            return super().answer(broadcast, fault)  # type: ignore[arg-type]

    world.devices = [Judge(**vars(device)) for device in devices]
    result = world.run().run()
    assert result.best.number == 2
    assert result.metrics["accuracy_drifted"] == pytest.approx(0.8)
    assert result.metrics["champion_accuracy_drifted"] == pytest.approx(0.3)
    assert result.metrics["measuring_devices"] == 3


def test_measuring_is_not_needed_for_a_result(tmp_path: Path) -> None:
    devices = three()
    for one in devices:
        one.faults = deque(["", "", "", *["refuse"] * 9])
    world = World(tmp_path, devices)
    result = world.run().run()
    assert result.best.number == 3
    assert "device_accuracy" not in result.metrics
    assert result.metrics["measuring_devices"] == 0


# The journal.


def test_a_round_is_committed_once_and_in_order(tmp_path: Path) -> None:
    journal = World(tmp_path, []).journal

    def commit(number: int, value: float) -> RoundRecord:
        state = {"w": np.full(2, value, np.float32)}
        return journal.commit(
            number=number, invited=3, accepted=2, accuracy=value, loss=0.5, seconds=1.0, state=state, metrics={"x": 1.0}
        )

    first = commit(1, 0.25)
    assert commit(1, 0.75) == first  # another process was there first
    with pytest.raises(ValueError, match="round 3 cannot follow round 1"):
        commit(3, 0.5)
    assert [record.number for record in journal.rounds()] == [1]
    assert journal.load(first.parameters_sha256)["w"].tolist() == [0.25, 0.25]


def test_the_first_update_of_a_device_stays(tmp_path: Path) -> None:
    world = World(tmp_path, [])
    for value in (1.0, 2.0):
        state: State = {"w": np.full(2, value, np.float32)}
        world.journal.record(1, Update("a", 10, state, Payload("float32", encode_bundle(state)), {"loss": value}))
    recorded = world.journal.recorded(1)
    assert len(recorded) == 1
    payload = world.journal.load_update(1, recorded[0])
    assert payload is not None
    assert decode_bundle(payload.parameters)["w"][0] == 1.0
    assert decode_bundle(BASE)["w"][0] == 0.0
    with world.database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(CampaignRound)) == 0
