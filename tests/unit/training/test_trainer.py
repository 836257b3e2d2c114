"""The trainer and its checkpoints, in this process; kills are in the integration tests."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skerry_contract.tensors import encode_bundle
from skerry_models.errors import ParameterError
from skerry_models.fitting import train_epoch
from skerry_models.parameters import initial_parameters
from skerry_models.task import CENTRAL, HOLDOUT, TrainingDefaults, load_task
from skerry_server.errors import InvalidRequestError
from skerry_server.training.checkpoint import CheckpointError, load_checkpoint
from skerry_server.training.settings import TrainingSettings
from skerry_server.training.trainer import EpochRecord, TrainingResult, train

TASK = load_task("digits")
CENTRAL_ROWS, HOLDOUT_ROWS = TASK.source(CENTRAL), TASK.source(HOLDOUT)
SETTINGS = TrainingSettings(epochs=3, batch_size=32, learning_rate=0.05, momentum=0.9, device="cpu", seed=5)


def run(path: Path, settings: TrainingSettings = SETTINGS, **options: object) -> TrainingResult:
    return train(TASK, settings, dataset=CENTRAL_ROWS, holdout=HOLDOUT_ROWS, checkpoint=path, **options)  # type: ignore[arg-type]  # options are keyword arguments of train


class Power(Exception):
    """A cut in the middle of a run."""


def test_training_learns_and_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a.pt"), run(tmp_path / "b.pt")
    assert encode_bundle(first.state) == encode_bundle(second.state)
    assert [record.epoch for record in first.history] == [0, 1, 2]
    assert first.history[-1].loss < first.history[0].loss
    assert first.history[-1].holdout_accuracy > 0.5
    other = run(tmp_path / "c.pt", replace(SETTINGS, seed=6))
    assert encode_bundle(first.state) != encode_bundle(other.state)


def test_schedules(tmp_path: Path) -> None:
    constant = run(tmp_path / "a.pt", replace(SETTINGS, schedule="constant"))
    assert [record.learning_rate for record in constant.history] == [0.05] * 3
    cosine = run(tmp_path / "b.pt")
    # floor 0.05 of the peak; half way down the cosine lies (1 + 0.05) / 2 of it
    assert [record.learning_rate for record in cosine.history] == pytest.approx([0.05, 0.02625, 0.0025])


def test_a_run_that_broke_off_goes_on_where_it_stood(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.pt")
    seen: list[int] = []

    def cut(record: EpochRecord) -> None:
        seen.append(record.epoch)
        if record.epoch == 1:
            raise Power

    with pytest.raises(Power):
        run(tmp_path / "cut.pt", on_epoch=cut)
    resumed = run(tmp_path / "cut.pt", on_epoch=cut)
    assert seen == [0, 1, 2]
    assert resumed.resumed_from == 2
    assert encode_bundle(resumed.state) == encode_bundle(whole.state)
    assert [record.loss for record in resumed.history] == [record.loss for record in whole.history]
    again = run(tmp_path / "cut.pt", on_epoch=cut)
    assert seen == [0, 1, 2]
    assert encode_bundle(again.state) == encode_bundle(whole.state)


def test_a_warm_start_begins_from_the_given_state(tmp_path: Path) -> None:
    start = run(tmp_path / "a.pt").state
    warm = run(tmp_path / "b.pt", replace(SETTINGS, epochs=1, learning_rate=1e-9), initial=start)
    for name, array in start.items():
        difference = np.asarray(warm.state[name], dtype=np.float64) - np.asarray(array, dtype=np.float64)
        assert np.abs(difference).max() < 1e-6
    with pytest.raises(ParameterError):
        run(tmp_path / "c.pt", initial={"x": np.zeros(1, dtype=np.float32)})
    assert not (tmp_path / "c.pt").exists()


@pytest.mark.parametrize("harm", ["cut short", "text", "empty"])
def test_a_damaged_checkpoint_is_replaced_and_the_result_is_the_same(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.pt"
    whole = run(path)
    data = path.read_bytes()
    path.write_bytes({"cut short": data[: len(data) // 2], "text": b"hello", "empty": b""}[harm])
    with pytest.raises(CheckpointError, match="does not load"):
        load_checkpoint(path, fingerprint="")
    again = run(path)
    assert again.resumed_from == 0
    assert encode_bundle(again.state) == encode_bundle(whole.state)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    run(path)
    with pytest.raises(CheckpointError, match="other settings, data or start"):
        load_checkpoint(path, fingerprint="0" * 64)
    other = run(path, replace(SETTINGS, seed=6))
    assert other.resumed_from == 0


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_checkpoint_cannot_run_code(tmp_path: Path, save: object) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "owned"
    assert callable(save)
    save({"version": 1, "network": Bomb(target)}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path, fingerprint="")
    assert not target.exists()


@pytest.mark.parametrize("document", [{"version": 2}, {"version": 1}, [1, 2]])
def test_other_documents_are_no_checkpoints(tmp_path: Path, document: object) -> None:
    torch.save(document, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "a.pt", fingerprint="")
    assert load_checkpoint(tmp_path / "none.pt", fingerprint="") is None


def test_divergence_names_the_learning_rate(tmp_path: Path) -> None:
    huge = {name: np.full_like(array, 1e30) for name, array in initial_parameters(TASK, 0).items()}
    with pytest.raises(InvalidRequestError) as wrong:
        run(tmp_path / "a.pt", initial=huge)
    assert wrong.value.field == "settings.learning_rate"
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_mixed_precision_learns(autocast: torch.dtype) -> None:
    """The paths that CUDA takes, with the CPU's own autocast."""
    network = TASK.create_network(0)
    plan = TrainingDefaults(epochs=4, batch_size=32, learning_rate=0.05, momentum=0.9)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if autocast is torch.float16 else None
    losses = [
        train_epoch(network, optimiser, CENTRAL_ROWS, plan, seed=0, epoch=epoch, autocast=autocast, scaler=scaler).loss
        for epoch in range(4)
    ]
    assert losses[-1] < losses[0]
    assert scaler is None or scaler.get_scale() == 256.0
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as wrong:
        run(tmp_path / "a.pt", replace(SETTINGS, device="cuda"))
    assert wrong.value.field == "settings.device"
    assert run(tmp_path / "b.pt", replace(SETTINGS, device="auto", epochs=1)).device == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("amp", [True, False])
def test_cuda_trains_like_the_cpu_and_resumes_to_the_same_bits(tmp_path: Path, amp: bool) -> None:
    settings = replace(SETTINGS, epochs=10, device="cuda", amp=amp)

    def cut(record: EpochRecord) -> None:
        if record.epoch == 4:
            raise Power

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = run(tmp_path / "whole.pt", settings)
        with pytest.raises(Power):
            run(tmp_path / "cut.pt", settings, on_epoch=cut)
        resumed = run(tmp_path / "cut.pt", settings)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (resumed.device, resumed.resumed_from) == ("cuda", 5)
    assert encode_bundle(resumed.state) == encode_bundle(whole.state)
    cpu = run(tmp_path / "cpu.pt", replace(settings, device="cpu"))
    assert abs(whole.history[-1].holdout_accuracy - cpu.history[-1].holdout_accuracy) <= 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_divergence_on_cuda_names_the_learning_rate(tmp_path: Path) -> None:
    huge = {name: np.full_like(array, 1e30) for name, array in initial_parameters(TASK, 0).items()}
    with pytest.raises(InvalidRequestError) as wrong:
        run(tmp_path / "a.pt", replace(SETTINGS, device="cuda"), initial=huge)
    assert wrong.value.field == "settings.learning_rate"
    assert not (tmp_path / "a.pt").exists()
