from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skerry_models.errors import DataError
from skerry_models.networks.har import DEVIATION, FEATURE_NAMES, MEAN
from skerry_models.tasks.har import HarTask


@pytest.fixture
def task(data_dir: Path) -> HarTask:
    return HarTask()


def test_sources_are_people_who_do_not_overlap(task: HarTask) -> None:
    names = ["central", "holdout", "unseen", *(f"client/{name}" for name in task.client_names())]
    assert task.client_names()[0] == "person-01"
    assert len(task.client_names()) == 14
    seen: set[bytes] = set()
    for name in names:
        data = task.source(name)
        assert data.x.shape[1:] == (9, 128)
        assert set(data.y.tolist()) == set(range(6))
        keys = {row.tobytes() for row in data.x}
        assert not keys & seen
        seen |= keys
    windows = task._windows
    assert sum(len(task.source(name)) for name in names) == int((windows.y < 6).sum())


def test_channels_are_transposed_not_reshaped(task: HarTask) -> None:
    windows = task._windows
    first = np.flatnonzero((windows.subject == 1) & (windows.y < 6))[0]
    np.testing.assert_array_equal(task.source("client/person-01").x[0][4], windows.x[first][:, 4])


def test_preprocessing_constants_are_those_of_the_central_people(task: HarTask) -> None:
    x = task.source("central").x.astype(np.float64)
    np.testing.assert_allclose(MEAN, x.mean((0, 2)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(DEVIATION, x.std((0, 2)), rtol=1e-3)


def test_unknown_source_lists_the_known_ones_without_reading_data() -> None:
    with pytest.raises(DataError) as caught:
        HarTask().source("client/person-99")
    assert "client/person-14" in caught.value.looked_for[0]


def test_drift_is_a_rotation_of_each_sensor() -> None:
    task = HarTask()
    x = np.random.default_rng(0).standard_normal((3, 9, 128)).astype(np.float32)
    before = x.copy()
    turned = task.apply_drift(x, 5)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(turned, task.apply_drift(x, 5))
    assert turned.dtype.name == "float32"
    assert turned.shape == x.shape
    for first in (0, 3, 6):
        before_norm, after_norm = (np.linalg.norm(rows[:, first : first + 3], axis=1) for rows in (x, turned))
        np.testing.assert_allclose(after_norm, before_norm, rtol=1e-4)
    basis = np.zeros((3, 9, 128), dtype=np.float32)
    for axis in range(3):
        basis[axis, 6 + axis] = 1.0
    rotation = task.apply_drift(basis, 5)[:, 6:, 0].T
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-6)
    # What pointed up (x) now points into the wearer (-z), within the tilt.
    assert rotation[2, 0] < -0.9
    assert not np.allclose(rotation, task.apply_drift(basis, 6)[:, 6:, 0].T, atol=1e-3)


def test_features_by_hand() -> None:
    window = np.zeros((1, 9, 128), dtype=np.float32)
    window[0, 0] = 3.0
    window[0, 1] = 4.0
    window[0, 4] = 2.0
    window[0, 6, ::2] = 1.0
    window[0, 7] = 0.0
    window[0, 8] = 0.0
    values = dict(zip(FEATURE_NAMES, HarTask().create_features()(torch.from_numpy(window))[0].tolist(), strict=True))
    assert HarTask.feature_names == FEATURE_NAMES
    assert values["total_acc_x_mean"] == pytest.approx(0.5)
    assert values["total_acc_y_mean"] == values["total_acc_z_mean"] == 0.0
    assert values["total_acc_magnitude_deviation"] == pytest.approx(0.5)
    assert values["body_acc_rms"] == pytest.approx(5.0)
    assert values["gyro_x_rms"] == values["gyro_z_rms"] == 0.0
    assert values["gyro_y_rms"] == pytest.approx(2.0)
    assert values["jerk_rms"] == pytest.approx(1.0)
