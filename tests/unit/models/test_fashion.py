"""The fashion task on a subset, and where its data is looked for."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from skerry_models.datasets.fashion_source import load_fashion, read_fashion_file
from skerry_models.errors import DataError
from skerry_models.task import Dataset, Task, load_task
from skerry_models.tasks.fashion import FashionTask

ROWS = 4_200


def images(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, rows, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, 20, dtype=np.uint8),
    }


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """No data but what a test puts below this folder."""
    names = ("SKERRY_DATA_DIR", "SKERRY_CACHE_DIR", "SKERRY_FASHION_URL")
    before = {name: os.environ.get(name) for name in names}
    for name, folder in zip(names, ("data", "cache", "public"), strict=True):
        (tmp_path / folder).mkdir()
        os.environ[name] = str(tmp_path / folder)
    os.environ["SKERRY_FASHION_URL"] = (tmp_path / "public").as_uri()
    yield tmp_path
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def task(places: Path) -> Task:
    np.savez(places / "data" / "fashion_mnist.npz", **images(ROWS))
    return FashionTask()


def test_it_is_registered() -> None:
    assert load_task("fashion").name == "fashion"


def test_parts_never_overlap_and_cover_everything(task: Task) -> None:
    clients = [f"client/{name}" for name in task.client_names()]
    parts = {name: task.source(name) for name in ("central", "holdout", *clients)}
    assert [len(parts[name]) for name in ("central", "holdout")] == [2_000, 2_000]
    assert {len(parts[name]) for name in clients} == {5}
    together = np.concatenate([part.x for part in parts.values()]).reshape(-1, 784)
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(map(bytes, images(ROWS)["x_train"].reshape(-1, 784)))
    assert len(task.source("unseen")) == 20
    assert parts["central"].x.shape[1:] == task.input.shape
    with pytest.raises(DataError, match="no source 'client/shop-99'"):
        task.source("client/shop-99")


def test_network_features_and_drift_fit_the_task(task: Task) -> None:
    import torch

    rows: Dataset = task.source("unseen")
    network = task.create_network(0)
    assert network(torch.from_numpy(rows.x)).shape == (20, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 60_874
    features = task.create_features()(torch.from_numpy(rows.x)).numpy()
    assert features.shape == (20, len(task.feature_names))
    image = rows.x[0, 0].astype(np.float64)
    cloth = image > 20.0
    expected = [
        image.mean(),
        image.std(),
        cloth.mean(),
        image[cloth].mean(),
        (np.diff(image, axis=1) ** 2).mean(),
        (np.diff(image, axis=0) ** 2).mean(),
    ]
    np.testing.assert_allclose(features[0], expected, rtol=1e-4)
    drifted = task.apply_drift(rows.x, 3)
    assert drifted.dtype == np.float32
    assert 0 <= drifted.min() <= drifted.max() <= 255
    assert drifted.std() < rows.x.std() / 2
    np.testing.assert_array_equal(drifted, task.apply_drift(rows.x, 3))


def test_constants_are_those_of_the_central_rows() -> None:
    """On the real data, where it is."""
    folder = os.environ.get("SKERRY_DATA_DIR", "")
    if not folder or not (Path(folder) / "fashion_mnist.npz").is_file():
        pytest.skip("fashion_mnist.npz is not here")
    from skerry_models.networks.fashion import DEVIATION, MEAN

    central = load_task("fashion").source("central").x.astype(np.float64)
    np.testing.assert_allclose([central.mean(), central.std()], [*MEAN, *DEVIATION], rtol=1e-3)


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


def publish(folder: Path, arrays: dict[str, Any]) -> None:
    for name, file in (
        ("x_train", "train-images-idx3-ubyte.gz"),
        ("y_train", "train-labels-idx1-ubyte.gz"),
        ("x_test", "t10k-images-idx3-ubyte.gz"),
        ("y_test", "t10k-labels-idx1-ubyte.gz"),
    ):
        (folder / file).write_bytes(idx(arrays[name]))


def test_the_public_files_are_fetched_once_and_kept(places: Path) -> None:
    arrays = images(30)
    publish(places / "public", arrays)
    loaded = load_fashion()
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
    for path in (places / "public").iterdir():
        path.unlink()
    again = load_fashion()
    assert again.origin == str(places / "cache" / "fashion_mnist.npz")
    np.testing.assert_array_equal(again.x_train, arrays["x_train"])


def test_without_data_every_place_that_was_tried_is_named(places: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_fashion()
    tried = " ".join(caught.value.looked_for)
    assert str(places / "data" / "fashion_mnist.npz") in tried
    assert str(places / "cache" / "fashion_mnist.npz") in tried
    assert "public/train-images-idx3-ubyte.gz" in tried
    assert "SKERRY_DATA_DIR" in caught.value.remedy
    assert not list((places / "cache").iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"noise", gzip.compress(b"\0\0\x08\x03"), idx(np.zeros((3, 28, 28), dtype=np.uint8))[:-20]]
)
def test_damaged_public_files_are_refused_and_not_kept(places: Path, content: bytes) -> None:
    publish(places / "public", images(30))
    (places / "public" / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError):
        load_fashion()
    assert not list((places / "cache").iterdir())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fashion_mnist.npz"
    np.savez(path, **{**images(30), "y_train": np.full(30, 10, dtype=np.uint8)})
    with pytest.raises(DataError, match="does not hold Fashion-MNIST"):
        read_fashion_file(path)
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        read_fashion_file(path)


def test_too_few_images_are_refused(places: Path) -> None:
    np.savez(places / "data" / "fashion_mnist.npz", **images(100))
    with pytest.raises(DataError, match="too small"):
        FashionTask().source("central")
