"""The vision task on a subset and at a small size: 2 x 2 articles of 28 pixels instead of 4 x 4 of 56."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from skerry_models.errors import DataError
from skerry_models.ladder import Laddered, RungTask, rungs_of
from skerry_models.networks import vision
from skerry_models.parameters import from_network, load_into
from skerry_models.task import Task, TrainsOnViews, TrainsPartly, create_device_network, load_task, training_rows
from skerry_models.tasks.digits import DigitsTask
from skerry_models.tasks.vision import VisionTask

ROWS = 8_400


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> VisionTask:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "fashion_mnist.npz",
        x_train=rng.integers(0, 256, (ROWS, 28, 28), dtype=np.uint8),
        y_train=(np.arange(ROWS) % 10).astype(np.uint8),
        x_test=rng.integers(0, 256, (90, 28, 28), dtype=np.uint8),
        y_test=(np.arange(90) % 10).astype(np.uint8),
    )
    before = os.environ.get("SKERRY_DATA_DIR")
    os.environ["SKERRY_DATA_DIR"] = str(folder)
    small = VisionTask(places=2, zoom=1, width=0.25, small_width=0.1)
    small.source("unseen")
    if before is None:
        del os.environ["SKERRY_DATA_DIR"]
    else:
        os.environ["SKERRY_DATA_DIR"] = before
    return small


def test_registered_with_the_standard_size() -> None:
    registered = load_task("vision")
    assert registered.input.shape == (3, 224, 224)
    assert (registered.input.minimum, registered.input.maximum) == (0.0, 255.0)
    assert isinstance(registered, Laddered)
    assert isinstance(registered, TrainsPartly)
    assert isinstance(registered, TrainsOnViews)
    assert registered.feature_names == vision.FEATURE_NAMES
    assert [rung.name for rung in rungs_of(registered)] == ["small"]
    assert rungs_of(DigitsTask()) == ()


def test_a_shelf_by_hand(task: VisionTask) -> None:
    images = task._images
    articles = np.array([41, 7, 8, 9])
    shelf = task._shelf(images.x_train[articles], articles).reshape(3, 56, 56)
    ground = 10 + 41 * 7 % 41  # 10
    for place, (top, left) in zip(range(4), [(0, 0), (0, 28), (28, 0), (28, 28)], strict=True):
        number = int(articles[place])
        for channel, step in enumerate((37, 59, 83)):
            colour = 128 + number * step % 128
            grey = images.x_train[number].astype(np.float64) / 255
            expected = ground + (colour - ground) * grey
            np.testing.assert_allclose(shelf[channel, top : top + 28, left : left + 28], expected, atol=1e-4)


def test_sources_are_full_shelves_of_one_class_and_never_overlap(task: VisionTask) -> None:
    central, holdout, unseen = (task.source(name) for name in ("central", "holdout", "unseen"))
    assert (len(central), len(holdout), len(unseen)) == (256, 200, 20)
    assert np.bincount(central.y).min() >= 25
    assert task.source("client/store-03").x.shape[1:] == task.input.shape == (3, 56, 56)
    assert central.x.min() >= 0
    assert central.x.max() <= 255
    parts = [set(task._parts[name].tolist()) for name in task._parts]
    assert sum(map(len, parts)) == len(set().union(*parts)) == ROWS
    again = VisionTask(places=2, zoom=1)
    again.__dict__["_images"] = task._images
    np.testing.assert_array_equal(again.source("holdout").x, holdout.x)
    with pytest.raises(DataError, match="no source 'client/store-13'"):
        task.source("client/store-13")


def test_training_sees_articles_first_and_shelves_then(task: VisionTask) -> None:
    shelves = task.source("unseen")
    articles = training_rows(task, shelves, 0.25)
    assert articles.x.shape == (80, 3, 28, 28)
    assert articles.y.tolist() == np.repeat(shelves.y, 4).tolist()
    np.testing.assert_array_equal(articles.x[6], shelves.x[1, :, 28:, :28])
    assert training_rows(task, shelves, 0.4) is shelves
    assert training_rows(DigitsTask(), shelves, 0.0) is shelves


def test_drift_by_hand(task: VisionTask) -> None:
    x = np.full((1, 3, 2, 2), 100, np.float32)
    drifted = task.apply_drift(x, seed=3)
    np.testing.assert_array_equal(drifted, task.apply_drift(x, seed=3))
    levels = sorted(drifted[0, :, 0, 0].tolist())
    assert levels[2] - levels[0] > 40  # one lamp keeps its light
    assert 50 <= levels[0] <= levels[1] <= 85
    assert x.max() == 100
    assert task.apply_drift(np.full((1, 3, 2, 2), 255, np.float32), seed=3).max() == 255


def test_devices_train_the_head_alone(task: VisionTask) -> None:
    network = create_device_network(task, 0)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert list(from_network(network)) == list(from_network(task.create_network(0)))
    network.train()
    before = from_network(network)
    x = torch.from_numpy(task.source("unseen").x[:4])
    network(x).sum().backward()
    after = from_network(network)
    assert all(np.array_equal(before[name], after[name]) for name in before)  # statistics stand still
    full = task.create_network(0).train()
    full(x)
    moved = from_network(full)
    assert not np.array_equal(moved["trunk.0.norm.running_mean"], before["trunk.0.norm.running_mean"])
    load_into(network, moved)


def test_networks_and_features(task: VisionTask) -> None:
    x = torch.from_numpy(task.source("unseen").x[:2])
    assert task.create_network(1)(x).shape == (2, 10)
    assert task.create_network(1)(x[:, :, :28, :28]).shape == (2, 10)  # fully convolutional
    (rung,) = rungs_of(task)
    small = RungTask(task, rung)
    assert isinstance(small, Task)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (task.create_network(0), rung.create(0))]
    assert sizes[1] < sizes[0]
    assert small.create_network(0)(x).shape == (2, 10)
    features = task.create_features()(x)
    assert features.shape == (2, len(task.feature_names))
    np.testing.assert_allclose(features[:, :3], x.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(features[:, 3:6], x.std((2, 3), unbiased=False), rtol=1e-4)


def test_channels_of_narrow_networks() -> None:
    assert [vision.scaled_channels(c, 0.35) for c in (16, 24, 32, 64, 96, 160, 320)] == [8, 8, 8, 24, 32, 56, 112]
    assert vision.scaled_channels(1280, 0.35) == 448


def test_standardisation_is_that_of_the_central_rows(data_dir: Path) -> None:
    assert (data_dir / "fashion_mnist.npz").exists()
    rows = VisionTask(zoom=1).source("central").x  # doubling each pixel changes neither mean nor deviation
    np.testing.assert_allclose(rows.mean((0, 2, 3), dtype=np.float64), vision.MEAN, rtol=1e-3)
    np.testing.assert_allclose(rows.std((0, 2, 3), dtype=np.float64), vision.DEVIATION, rtol=1e-3)
