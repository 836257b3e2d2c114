"""Parameters that stay on the device: patterns, training, measuring, releases, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skerry_agent.training.personal import PersonalParameters, parse_patterns, personal_names, with_own
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import EvaluateInstruction, EvaluateReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from unit.agent_training.campaign_rig import STEP, TASK, Device, FullDisk, Samples, graphs_of, instruction
from unit.agent_training.linear_graphs import BIAS, WEIGHT, LinearGraphs

F32 = np.float32


@pytest.fixture(scope="module")
def graphs() -> LinearGraphs:
    return graphs_of()


def test_patterns_are_those_of_the_shell() -> None:
    names = ["block.0.norm.weight", "block.0.conv.weight", "head.weight", "Head.bias"]
    assert personal_names(names, parse_patterns("*.norm.*\n head.* \n\n")) == {names[0], names[2]}
    assert personal_names(names, parse_patterns("")) == frozenset()
    for text in ("x" * 20_000, "\n".join("abc" for _ in range(300))):
        with pytest.raises(WireError, match="personal"):
            parse_patterns(text)


def model() -> dict[str, Array]:
    return {"w": np.zeros((2, 2), F32), "norm": np.ones(2, F32), "seen": np.array(3)}


def test_own_values_are_kept_per_task_and_only_where_they_fit(tmp_path: Path) -> None:
    store = PersonalParameters(tmp_path)
    own: dict[str, Array] = {"norm": np.full(2, 5.0, F32), "seen": np.array(9)}
    assert store.keep("moons", own)
    again = PersonalParameters(tmp_path)
    assert {name: array.tolist() for name, array in again.load("moons", model()).items()} == {
        "norm": [5.0, 5.0],
        "seen": 9,
    }
    assert list(again.load("moons", model(), {"norm"})) == ["norm"]
    assert again.load("har", model()) == {}
    mixed = with_own(model(), again.load("moons", model()))
    assert (list(mixed), mixed["norm"].tolist()) == (["w", "norm", "seen"], [5.0, 5.0])
    again.forget("moons")
    assert PersonalParameters(tmp_path).load("moons", model()) == {}


def test_a_new_release_takes_over_what_fits_and_says_what_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PersonalParameters(tmp_path)
    store.keep("moons", {"norm": np.full(2, 5.0, F32), "head": np.zeros(7, F32), "w": np.zeros((9, 2), F32)})
    for _ in range(2):
        assert list(store.load("moons", model())) == ["norm"]
    told = [entry.getMessage() for entry in caplog.records]
    assert told == ["own parameters of moons do not fit its network any more: head, w"], "once"
    store.keep("moons", {"norm": np.array([1.0, np.nan], F32)})
    assert store.load("moons", model()) == {}, "what is not finite does not fit either"


@pytest.mark.parametrize("data", [b"", b"short", b"\x00" * 64])
def test_a_broken_file_costs_the_own_values_only(tmp_path: Path, data: bytes) -> None:
    store = PersonalParameters(tmp_path)
    store.keep("moons", {"norm": np.full(2, 5.0, F32)})
    (tmp_path / "moons.kept").write_bytes(data)
    assert store.load("moons", model()) == {}
    assert not (tmp_path / "moons.kept").exists()


def test_without_room_the_values_before_are_kept(tmp_path: Path) -> None:
    disk = FullDisk()
    store = PersonalParameters(tmp_path, disk=disk)
    store.keep("moons", {"norm": np.full(2, 5.0, F32)})
    disk.full = True
    assert not store.keep("moons", {"norm": np.full(2, 6.0, F32)})
    assert PersonalParameters(tmp_path).load("moons", model())["norm"].tolist() == [5.0, 5.0]


def measure(device: Device, state: dict[str, Array]) -> EvaluateReply:
    return device.worker.evaluate(
        EvaluateInstruction(
            campaign_id="campaign-1",
            round=1,
            task=TASK,
            train_step_sha256=STEP,
            model="result",
            deadline_ms=1000,
            parameters=encode_bundle(state),
        )
    )


def test_a_head_stays_here_is_trained_further_and_is_measured(graphs: LinearGraphs, tmp_path: Path) -> None:
    """The weight is everybody's, the bias is the device's; its samples are nearly all of one class."""
    zero = graphs.zero_state()
    samples = Samples(60)
    samples.y[:50] = 3
    device = Device(tmp_path, graphs, samples=samples)
    assert measure(device, zero).personal_accuracy == -1.0
    first = device.train(instruction(zero, 1, personal="*.bias", learning_rate=0.1))
    assert list(decode_bundle(first.parameters)) == [WEIGHT], "the own part is sent to nobody"
    own = PersonalParameters(tmp_path / "personal").load(TASK, zero)
    assert list(own) == [BIAS]
    assert np.argmax(own[BIAS]) == 3
    assert first.personal_accuracy > first.validation_accuracy
    device.start()
    second = device.train(instruction(zero, 2, personal="*.bias", learning_rate=0.1))
    further = PersonalParameters(tmp_path / "personal").load(TASK, zero)
    assert further[BIAS].max() > own[BIAS].max(), "training goes on from the own values"
    assert second.validation_accuracy == first.validation_accuracy, "the received model is measured as it came"
    both = measure(device, zero)
    assert both.personal_accuracy == second.personal_accuracy > both.accuracy


def test_own_parameters_are_in_no_difference_no_norm_and_no_variate(graphs: LinearGraphs) -> None:
    zero = graphs.zero_state()
    device = Device(None, graphs)
    reply = device.train(instruction(zero, personal="*.weight", control=encode_bundle(zero)))
    state = decode_bundle(reply.parameters)
    assert list(state) == [BIAS]
    assert reply.norm == pytest.approx(float(np.linalg.norm(state[BIAS])), rel=1e-6)
    change = decode_bundle(reply.control)
    assert not change[WEIGHT].any()
    assert change[BIAS].any()
    lossy = Device(None, graphs).train(instruction(zero, personal="*.bias", wire="int8"))
    assert lossy.wire == "int8"


def test_too_many_patterns_are_refused(graphs: LinearGraphs) -> None:
    with pytest.raises(RefusedError, match="personal"):
        Device(None, graphs).train(instruction(graphs.zero_state(), personal="x" * 20_000))
