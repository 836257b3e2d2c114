from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from skerry_models.errors import ParameterError
from skerry_models.evaluation import evaluate_parameters
from skerry_models.fitting import EpochResult, create_optimiser, epoch_order, fit, scheduled_rate, train_epoch
from skerry_models.parameters import from_network, initial_parameters
from skerry_models.task import Dataset, TrainingDefaults
from skerry_models.tasks.digits import DigitsTask

TASK = DigitsTask()
SHORT = TrainingDefaults(epochs=3, batch_size=32, learning_rate=0.02, momentum=0.9)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert sorted(epoch_order(9, seed=1, epoch=0).tolist()) == list(range(9))
    np.testing.assert_array_equal(epoch_order(9, seed=1, epoch=4), epoch_order(9, seed=1, epoch=4))
    assert epoch_order(9, seed=1, epoch=4).tolist() != epoch_order(9, seed=1, epoch=5).tolist()
    assert epoch_order(9, seed=1, epoch=4).tolist() != epoch_order(9, seed=2, epoch=4).tolist()


def test_schedule_by_hand() -> None:
    rates = [scheduled_rate(SHORT, epoch) for epoch in range(3)]
    assert rates == pytest.approx([0.02, 0.02 * (0.05 + 0.95 / 2), 0.001])
    assert scheduled_rate(dataclasses.replace(SHORT, epochs=1), 0) == 0.02


def test_fit_is_deterministic_and_reports_every_epoch() -> None:
    seen: list[EpochResult] = []
    first = fit(TASK, TASK.source("central"), settings=SHORT, seed=5, on_epoch=seen.append)
    second = fit(TASK, TASK.source("central"), settings=SHORT, seed=5)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert [result.epoch for result in seen] == [0, 1, 2]
    assert seen[2].loss < seen[0].loss


def test_default_training_reaches_a_sensible_first_model() -> None:
    state = fit(TASK, TASK.source("central"))
    assert 0.85 <= evaluate_parameters(TASK, state, TASK.source("unseen")).accuracy <= 0.96


def test_epochs_run_one_by_one_equal_a_whole_run() -> None:
    network = TASK.create_network(2)
    optimiser = create_optimiser(network, SHORT)
    for epoch in range(SHORT.epochs):
        train_epoch(network, optimiser, TASK.source("central"), SHORT, seed=2, epoch=epoch)
    whole = fit(TASK, TASK.source("central"), settings=SHORT, seed=2)
    for name, array in from_network(network).items():
        np.testing.assert_array_equal(array, whole[name])


def test_warm_start_starts_from_the_given_state() -> None:
    start = fit(TASK, TASK.source("central"), settings=SHORT, seed=0)
    still = dataclasses.replace(SHORT, epochs=1, learning_rate=0.0)
    same = fit(TASK, TASK.source("central"), settings=still, seed=9, initial=start)
    for name in start:
        np.testing.assert_array_equal(same[name], start[name])
    with pytest.raises(ParameterError):
        fit(TASK, TASK.source("central"), settings=still, initial={"head.bias": np.zeros(10, np.float32)})


def test_divergence_and_empty_data_are_errors() -> None:
    central = TASK.source("central")
    with pytest.raises(FloatingPointError, match="too high"):
        fit(TASK, central, settings=dataclasses.replace(SHORT, learning_rate=1e12))
    with pytest.raises(ValueError, match="empty"):
        fit(TASK, Dataset(central.x[:0], central.y[:0]))
    assert all(np.isfinite(array).all() for array in initial_parameters(TASK, 0).values())
