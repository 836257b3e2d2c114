"""Rounds of a device: what it sends, what it keeps, and what a lost answer, a kill or a full disk changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import EvaluateInstruction, TrainReply
from skerry_contract.clipping import difference_norm
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from unit.agent_training.campaign_rig import (
    STEP,
    TASK,
    Device,
    FullDisk,
    counted,
    decoded,
    follow,
    graphs_of,
    instruction,
)
from unit.agent_training.linear_graphs import BIAS, WEIGHT, LinearGraphs, numbers
from unit.identity.power_disk import PowerCut, PowerDisk

State = dict[str, Array]


@pytest.fixture(scope="module")
def graphs() -> LinearGraphs:
    return graphs_of()


def gap(a: State, b: State) -> float:
    return difference_norm(a, b)


def residual_norm(device: Device, number: int) -> float:
    residual = device.state.journal.carried("campaign-1", number).residual
    return difference_norm(residual, {name: np.zeros_like(array) for name, array in residual.items()})


@pytest.mark.parametrize("wire", ["bfloat16", "int8", "int4", "topk", "randomk"])
def test_a_lossy_answer_and_its_residual_are_the_update(graphs: LinearGraphs, wire: str) -> None:
    exact = decoded(Device(None, graphs).train(instruction(graphs.zero_state())), graphs.zero_state())
    device = Device(None, graphs)
    reply = device.train(instruction(graphs.zero_state(), wire=wire, density=0.1))
    assert reply.wire == wire
    assert len(reply.parameters) < 0.75 * len(encode_bundle(graphs.zero_state()))
    sent = decoded(reply, graphs.zero_state())
    residual = device.state.journal.carried("campaign-1", 1).residual
    whole: State = {name: numbers(sent[name]) + numbers(residual[name]) for name in sent}
    assert gap(whole, exact) < 1e-5
    assert reply.norm == pytest.approx(gap(exact, graphs.zero_state()), rel=1e-6)


def test_error_feedback_delivers_what_a_sparse_wire_left_behind(graphs: LinearGraphs) -> None:
    """With 5 % of the values a round, the model follows the exact one; without the residual it stays far behind."""

    def fields(number: int) -> dict[str, object]:
        return {"wire": "topk", "density": 0.05, "learning_rate": 0.05}

    exact = follow(Device(None, graphs), graphs, 24, lambda number: {"learning_rate": 0.05})
    kept = follow(Device(None, graphs), graphs, 24, fields)

    def lost(number: int) -> dict[str, object]:
        return {**fields(number), "counted": counted(0)}  # a server by which no answer ever counted

    dropped = follow(Device(None, graphs), graphs, 24, lost)
    start = graphs.zero_state()
    assert gap(kept, exact) < 0.35 * gap(start, exact)
    assert gap(dropped, exact) > 1.5 * gap(kept, exact)


# Name: what happens after round 1 -> whether round 2 goes on from round 1's residual.
LOST: dict[str, tuple[bytes, bool]] = {
    "nothing is said": (b"", True),
    "it counted": (counted(1), True),
    "it was lost": (counted(0), False),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("restart", [False, True])
def test_a_residual_belongs_to_an_answer_that_counted(
    graphs: LinearGraphs, tmp_path: Path, name: str, restart: bool
) -> None:
    heard, goes_on = LOST[name]
    device = Device(tmp_path, graphs)
    zero = graphs.zero_state()
    device.train(instruction(zero, 1, wire="int4"))
    if restart:
        device.start()
    second = device.train(instruction(zero, 2, wire="int4", counted=heard))
    fresh = Device(None, graphs).train(instruction(zero, 2, wire="int4"))
    assert (second.parameters == fresh.parameters) is not goes_on
    assert device.state.journal.has("campaign-1")


@pytest.mark.parametrize("restart", [False, True])
def test_the_same_question_gets_the_same_answer_without_training(
    graphs: LinearGraphs, tmp_path: Path, restart: bool
) -> None:
    device = Device(tmp_path, graphs)
    zero = graphs.zero_state()
    asked = instruction(zero, wire="int4")
    first = device.train(asked)
    trained = device.trained
    if restart:
        device.start()
    assert device.train(replace(asked, deadline_ms=5)) == first
    plain = device.train(replace(asked, wire="float32"))
    assert plain.wire == "float32"
    assert gap(decoded(plain, zero), decoded(first, zero)) == 0.0, "the same values, in another encoding"
    assert device.trained == trained
    assert device.train(replace(asked, seed=77)).parameters != first.parameters
    assert device.trained == trained + 1


def test_a_plain_campaign_keeps_nothing_and_trains_again(graphs: LinearGraphs, tmp_path: Path) -> None:
    device = Device(tmp_path, graphs)
    asked = instruction(graphs.zero_state())
    first, second = device.train(asked), device.train(asked)
    assert first.parameters == second.parameters
    assert device.trained == 2
    assert list(tmp_path.iterdir()) == []


def test_a_wire_that_is_not_smaller_or_not_known_is_replaced_by_the_whole_model(graphs: LinearGraphs) -> None:
    tiny = graphs_of(row=(2,), classes=2)
    device = Device(None, tiny)
    device.samples.x, device.samples.y = device.samples.x[:, :2].copy(), device.samples.y % 2
    reply = device.train(instruction(tiny.zero_state(), wire="int8"))
    exact = Device(None, tiny, samples=device.samples).train(instruction(tiny.zero_state()))
    assert (reply.wire, reply.parameters) == ("float32", exact.parameters)
    assert Device(None, graphs).train(instruction(graphs.zero_state(), wire="holographic")).wire == "float32"


def test_the_last_word_of_a_campaign_lets_go(graphs: LinearGraphs, tmp_path: Path) -> None:
    device = Device(tmp_path, graphs)
    zero = graphs.zero_state()
    device.train(instruction(zero, wire="int4"))
    for last in (0, 1):
        assert device.state.journal.has("campaign-1")
        device.worker.evaluate(
            EvaluateInstruction(
                campaign_id="campaign-1",
                round=1,
                task=TASK,
                train_step_sha256=STEP,
                model="result",
                deadline_ms=1000,
                parameters=encode_bundle(zero),
                last=last,
            )
        )
    assert not device.state.journal.has("campaign-1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- a disk without room -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("honest", [False, True])
def test_without_room_the_residual_leaves_with_the_whole_model(
    graphs: LinearGraphs, tmp_path: Path, honest: bool
) -> None:
    disk = FullDisk(honest=honest)
    device = Device(tmp_path, graphs, disk=disk)
    zero = graphs.zero_state()
    device.train(instruction(zero, 1, wire="int4"))
    residual = device.state.journal.carried("campaign-1", 1).residual
    disk.full = True
    reply = device.train(instruction(zero, 2, wire="int4"))
    plain = decoded(Device(None, graphs).train(instruction(zero, 2)), zero)
    assert reply.wire == "float32"
    whole: State = {name: numbers(plain[name]) + numbers(residual[name]) for name in plain}
    assert gap(decoded(reply, zero), whole) < 1e-6
    assert not device.state.journal.has("campaign-1"), "it has been delivered: nothing is carried on"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    disk.full = False
    assert device.train(instruction(zero, 3, wire="int4")).wire == "int4"


@pytest.mark.parametrize("what", ["control", "noise"])
def test_without_room_nothing_leaves_that_must_be_remembered(graphs: LinearGraphs, tmp_path: Path, what: str) -> None:
    disk = FullDisk()
    device = Device(tmp_path, graphs, disk=disk)
    zero = graphs.zero_state()
    kinds: dict[str, dict[str, object]] = {
        "control": {"control": encode_bundle(zero)},
        "noise": {"clip_norm": 1.0, "noise_std": 0.1},
    }
    fields = kinds[what]
    device.train(instruction(zero, 1, **fields))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    disk.full = True
    with pytest.raises(RefusedError, match="No space left") as caught:
        device.train(instruction(zero, 2, **fields))
    assert not caught.value.final
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    disk.full = False
    device.train(instruction(zero, 2, **fields))


def test_a_kill_at_any_write_of_a_round_repeats_it_or_its_answer(graphs: LinearGraphs, tmp_path: Path) -> None:
    zero = graphs.zero_state()

    def first_two(device: Device) -> TrainReply:
        device.train(instruction(zero, 1, wire="int4"))
        return device.train(instruction(zero, 2, wire="int4", counted=counted(1)))

    counting = PowerDisk()
    expected = first_two(Device(tmp_path / "whole", graphs, disk=counting))
    assert len(counting.calls) > 8
    for cut_at in range(0, len(counting.calls), 2):
        device = Device(tmp_path / f"cut-{cut_at}", graphs, disk=PowerDisk(cut_at=cut_at, forgets=True))
        with pytest.raises(PowerCut):
            first_two(device)
        device.start(PowerDisk())
        assert first_two(device).parameters == expected.parameters, cut_at


# --- privacy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_what_leaves_is_clipped_with_and_without_a_residual(graphs: LinearGraphs, wire: str) -> None:
    device = Device(None, graphs)
    zero = graphs.zero_state()
    for number in (1, 2, 3):
        reply = device.train(instruction(zero, number, wire=wire, clip_norm=0.25))
        assert reply.norm > 0.5, "the norm that training had"
        assert gap(decoded(reply, zero), zero) == pytest.approx(0.25, rel=0.01)


def test_local_noise_is_drawn_once_and_nothing_else_is_told(graphs: LinearGraphs, tmp_path: Path) -> None:
    device = Device(tmp_path, graphs)
    zero = graphs.zero_state()
    asked = instruction(zero, clip_norm=1.0, noise_std=0.5)
    first = device.train(asked)
    told = (first.examples, first.steps, first.loss, first.validation_examples, first.norm, first.squared_loss)
    assert told == (1, 1, 0.0, 0, 0.0, -1.0)
    size = sum(array.size for array in zero.values())
    assert gap(decoded(first, zero), zero) == pytest.approx((1.0 + 0.25 * size) ** 0.5, rel=0.2)
    device.start()
    assert device.train(asked) == first
    with pytest.raises(RefusedError, match="noised answer to another question"):
        device.train(replace(asked, seed=9))
    assert device.train(asked) == first
    assert device.train(replace(asked, round=2)).parameters != first.parameters


def test_local_noise_and_control_variates_exclude_each_other(graphs: LinearGraphs) -> None:
    zero = graphs.zero_state()
    asked = instruction(zero, clip_norm=1.0, noise_std=0.5, control=encode_bundle(zero))
    with pytest.raises(RefusedError, match="tells what local noise hides"):
        Device(None, graphs).train(asked)


def test_losses_are_of_the_received_model_on_the_validation_split(graphs: LinearGraphs) -> None:
    reply = Device(None, graphs).train(instruction(graphs.zero_state()))
    assert reply.validation_loss == pytest.approx(np.log(8), rel=1e-6)
    assert reply.squared_loss == pytest.approx(np.log(8) ** 2, rel=1e-6)
    assert set(decode_bundle(reply.parameters)) == {WEIGHT, BIAS}
