"""Models that come as a difference from one that the device has: across restarts, rotten files and a full disk."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import NO_BASE
from skerry_contract.tensors import Array, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference, difference, encode_difference
from unit.agent_training.campaign_rig import Device, FullDisk, graphs_of, instruction
from unit.agent_training.linear_graphs import LinearGraphs

State = dict[str, Array]


@pytest.fixture(scope="module")
def graphs() -> LinearGraphs:
    return graphs_of()


def change(model: State, base: State, wire: str = "int8") -> tuple[dict[str, object], State]:
    """Fields of an instruction with the difference to ``model``, and the model that devices make of it."""
    data, _ = encode_difference(difference(model, base), wire=wire, seed=3)
    rebuilt = apply_difference(base, decode_difference(data, base, wire=wire))
    digest = sha256(encode_bundle(base)).hexdigest()
    return {"parameters": data, "parameters_wire": wire, "base_sha256": digest}, rebuilt


def models(graphs: LinearGraphs, count: int) -> list[State]:
    generator = np.random.default_rng(5)
    zero = graphs.zero_state()
    return [
        {name: generator.normal(size=array.shape).astype(np.float32) for name, array in zero.items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("restart", [False, True])
def test_a_difference_is_the_whole_model(graphs: LinearGraphs, tmp_path: Path, restart: bool) -> None:
    device = Device(tmp_path, graphs)
    base = models(graphs, 1)[0]
    device.train(instruction(base, 1))
    for number, target in enumerate(models(graphs, 5), start=2):
        fields, base = change(target, base)
        reply = device.train(instruction(base, number, **fields))
        whole = Device(None, graphs).train(instruction(base, number))
        assert reply.parameters == whole.parameters
        assert reply.validation_loss == whole.validation_loss
        if restart:
            device.start()
    files = list((tmp_path / "models").iterdir())
    assert len(files) == 3, "models on disk are bounded"


def _rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _each(folder: Path, damage: Callable[[Path], object]) -> None:
    for path in folder.iterdir():
        damage(path)


BASES: dict[str, Callable[[Path], object]] = {
    "never had": lambda folder: _each(folder, Path.unlink),
    "rotten": lambda folder: _each(folder, _rot),
    "cut short": lambda folder: _each(folder, lambda path: path.write_bytes(path.read_bytes()[:-9])),
    "another under its name": lambda folder: _swap(folder),
}


def _swap(folder: Path) -> None:
    first, second = sorted(folder.iterdir())[:2]
    first_data, second_data = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_data)
    second.write_bytes(first_data)


@pytest.mark.parametrize("name", BASES)
def test_without_its_base_the_device_asks_for_the_whole_model(graphs: LinearGraphs, tmp_path: Path, name: str) -> None:
    device = Device(tmp_path, graphs)
    base = models(graphs, 1)[0]
    device.train(instruction(base, 1))
    fields, second = change(models(graphs, 2)[1], base)
    device.train(instruction(base, 2, **fields))
    fields, third = change(models(graphs, 3)[2], second)
    BASES[name](tmp_path / "models")
    device.start()
    with pytest.raises(RefusedError, match=f"^{NO_BASE}: this device does not have the model") as caught:
        device.train(instruction(base, 3, **fields))
    assert not caught.value.final
    reply = device.train(instruction(third, 3))
    assert reply.parameters == Device(None, graphs).train(instruction(third, 3)).parameters
    device.start()
    fields, fourth = change(models(graphs, 4)[3], third)
    reply = device.train(instruction(base, 4, **fields))
    assert reply.parameters == Device(None, graphs).train(instruction(fourth, 4)).parameters


def test_models_that_cannot_be_kept_only_cost_a_whole_model_later(graphs: LinearGraphs, tmp_path: Path) -> None:
    disk = FullDisk()
    disk.full = True
    device = Device(tmp_path, graphs, disk=disk)
    base = models(graphs, 1)[0]
    device.train(instruction(base, 1))
    fields, second = change(models(graphs, 2)[1], base)
    reply = device.train(instruction(base, 2, **fields))
    assert reply.parameters == Device(None, graphs).train(instruction(second, 2)).parameters
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


BROKEN: dict[str, dict[str, object]] = {
    "garbage": {"parameters": b"\x00" * 40},
    "of another network": {"parameters": encode_difference({"w": np.zeros(5, np.float32)}, wire="int8", seed=1)[0]},
    "a wire that is none": {"parameters_wire": "holographic"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_difference_is_answered_by_asking_for_the_whole_model(
    graphs: LinearGraphs, tmp_path: Path, name: str
) -> None:
    device = Device(tmp_path, graphs)
    base = models(graphs, 1)[0]
    device.train(instruction(base, 1))
    fields, _ = change(models(graphs, 2)[1], base)
    with pytest.raises(RefusedError, match=f"^{NO_BASE}: the difference in wire .* cannot be applied") as caught:
        device.train(instruction(base, 2, **{**fields, **BROKEN[name]}))
    assert not caught.value.final
    device.train(instruction(base, 2, **fields))
