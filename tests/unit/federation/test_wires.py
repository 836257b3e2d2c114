"""How models and updates travel in a campaign: encoded, as differences, and plainly where a device cannot."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest

from skerry_contract.campaign import TRAIN, TrainInstruction
from skerry_server.federation.rounds.carried import Carried
from skerry_server.federation.rounds.downlink import DownLink, ModelDifference, settle
from skerry_server.federation.rounds.updates import Payload
from unit.federation.fakes import FakeDevice
from unit.federation.world import World, three


@pytest.mark.parametrize("wire", ["bfloat16", "int8", "int4"])
def test_updates_are_decoded_as_they_were_asked_for(tmp_path: Path, wire: str) -> None:
    world = World(tmp_path, three(), wire=wire)
    world.run().run()
    assert world.models() == pytest.approx([1.75, 3.5, 5.25], rel=0.02)  # constants lose little
    assert {asked for device in world.devices for _, asked in device.wires} == {wire}
    first = world.exchanges[0].broadcasts[0]
    assert (first.fields["wire"], first.fields["density"]) == (wire, 0.01)


def test_a_device_that_cannot_encode_is_asked_plainly_and_counts(tmp_path: Path) -> None:
    devices = three()
    devices[1].refuses_wires = True
    world = World(tmp_path, devices, wire="int8", quorum=1.0, rounds=1)
    world.run().run()
    assert devices[1].wires == [("float32", "int8"), ("float32", "float32")]
    assert world.journal.rounds()[0].accepted == 3
    assert world.models() == pytest.approx([1.75], rel=0.02)


def test_the_model_goes_down_as_a_difference_to_those_who_have_the_base(tmp_path: Path) -> None:
    devices = three()
    world = World(tmp_path, devices, down_wire="int8", quorum=1.0, rounds=4)
    world.run().run()
    assert [down for down, _ in devices[0].wires] == ["float32", "int8", "int8", "int8"]
    # What is committed is what the devices rebuilt: each one's newest model is a committed one.
    committed = {record.parameters_sha256 for record in world.journal.rounds()}
    for device in devices:
        assert len(committed & device.models.keys()) == 3  # rounds 2 to 4 started from the models of 1 to 3
    assert world.models() == pytest.approx([1.75, 3.5, 5.25, 7.0], rel=0.02)


def test_a_device_that_lost_the_base_gets_the_whole_model_in_the_same_round(tmp_path: Path) -> None:
    devices = three()
    world = World(tmp_path, devices, down_wire="int8", quorum=1.0, rounds=2)
    real = devices[2].answer

    def forgetful(broadcast: object, fault: str) -> object:
        if len(devices[2].wires) == 1:
            devices[2].models.clear()
        return real(broadcast, fault)  # type: ignore[arg-type]

    devices[2].answer = forgetful  # type: ignore[method-assign,assignment]  # as after a restart of the device
    world.run().run()
    assert [down for down, _ in devices[2].wires] == ["float32", "int8", "float32"]
    assert world.journal.rounds()[1].accepted == 3


def test_who_missed_a_round_gets_the_whole_model(tmp_path: Path) -> None:
    devices = three()
    devices[0].faults = deque(["", "refuse"])
    world = World(tmp_path, devices, down_wire="int8", rounds=3)
    world.run().run()
    assert [down for down, _ in devices[0].wires] == ["float32", "float32"]
    assert [down for down, _ in devices[1].wires] == ["float32", "int8", "int8"]


def test_bytes_are_counted_by_device_and_round(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=2, quorum=1.0)
    world.run().run()
    broadcast = next(each for each in world.exchanges[0].broadcasts if each.kind == TRAIN)
    size = len(bytes(broadcast.fields["parameters"]))  # type: ignore[arg-type]
    for record in world.journal.rounds():
        assert record.metrics["bytes_down"] == 3 * size
        assert record.metrics["bytes_up"] == 3 * size
        assert record.metrics["bytes_up_per_device"] == record.metrics["bytes_down_per_device"] == size
    for update in world.journal.recorded(1):
        assert (update.metrics["bytes_up"], update.metrics["bytes_down"]) == (size, size)


def test_a_rejected_answer_costs_its_bytes_and_says_why(tmp_path: Path) -> None:
    devices = three()
    devices[0].faults = deque(["shape"] * 3)
    world = World(tmp_path, devices, rounds=1)
    world.run().run()
    record = world.journal.rounds()[0]
    assert "rejected: parameters[w]: expected float32 (2,), got float32 (99,)" in record.failures["a"]
    assert record.metrics["rejected_replies"] == 1
    assert record.metrics["bytes_up"] > 3 * record.metrics["bytes_up_per_device"]


def test_a_scaled_update_is_rejected_once_there_is_a_median(tmp_path: Path) -> None:
    devices = [*three(), FakeDevice("d", 4, adds=1.0, examples=10)]
    devices[3].delay_s = 0.3  # after the others, whose norms are known by then
    world = World(tmp_path, devices, norm_bound=3.0, rounds=1)
    devices[3].adds = 1000.0
    world.run().run()
    record = world.journal.rounds()[0]
    assert (record.accepted, list(record.failures)) == (3, ["d"])
    assert "norm 1414 is above 3 times the median 2.475 of 3 updates" in record.failures["d"]
    assert world.models() == pytest.approx([1.75])


def test_a_payload_reads_back_as_it_was() -> None:
    payload = Payload("int8", b"\n\x00abc", b"control\n")
    assert Payload.unpack(payload.pack()) == payload
    assert len(payload) == 13
    with pytest.raises(ValueError, match="no header"):
        Payload.unpack(b"x" * 1000)


def test_what_the_down_link_loses_is_sent_later() -> None:
    step = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    committed, carried = {"w": np.zeros(1000, np.float32)}, Carried()
    for number in range(1, 9):
        trained = {"w": committed["w"] + step}
        state, carried = settle(trained, committed, carried, wire="topk", density=0.2, seed=number)
        committed = {"w": np.asarray(state["w"], np.float32)}
        owed = np.asarray(carried.residual["w"], np.float32)
        np.testing.assert_allclose(committed["w"] + owed, number * step, atol=1e-4)
    assert np.count_nonzero(committed["w"]) > 600  # 200 a round, and not always the same
    plain, nothing = settle(trained, committed, carried, wire="float32", density=0.2, seed=1)
    assert plain["w"] is trained["w"]
    assert (nothing.difference, nothing.residual) == (b"", {})


def test_devices_that_are_asked_the_same_share_one_message() -> None:
    instruction = TrainInstruction(
        campaign_id="c",
        round=2,
        task="t",
        train_step_sha256="0" * 64,
        local_epochs=1,
        batch_size=8,
        learning_rate=0.1,
        proximal_mu=0.0,
        minimum_samples=2,
        deadline_ms=1000,
        seed=1,
        parameters=b"whole",
        wire="int8",
    )
    link = DownLink(instruction, group="2", changes=ModelDifference("int8", b"diff", "1" * 64, {"a", "b"}))
    assert link.broadcast("a") is link.broadcast("b")
    assert link.broadcast("c").fields["parameters"] == b"whole"
    assert not link.troubled("a", "RuntimeError: out of memory")  # may be the difference: it is not used again
    assert link.broadcast("a") is link.broadcast("c")
    assert link.troubled("b", "no-base-model: gone")
    assert link.troubled("c", "rejected: wire: expected one of float32, int8, got int3")
    assert link.broadcast("c").fields["wire"] == "float32"
    assert not link.troubled("c", "wire: still")
    link.sent("a")
    link.sent("a")
    assert link.sent_bytes == {"a": 10}
