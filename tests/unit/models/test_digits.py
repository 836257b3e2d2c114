from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch

from skerry_models.datasets.partition import deal, hashed_order
from skerry_models.errors import DataError
from skerry_models.networks.digits import DEVIATION, FEATURE_NAMES, MEAN
from skerry_models.parameters import from_network
from skerry_models.tasks.digits import DigitsTask

TASK = DigitsTask()
SOURCES = ["central", "holdout", "unseen", *(f"client/{name}" for name in TASK.client_names())]


def keys(name: str) -> set[bytes]:
    data = TASK.source(name)
    return {hashlib.sha256(x.tobytes() + bytes([y])).digest() for x, y in zip(data.x, data.y.astype(int), strict=True)}


def test_partition_is_complete_and_disjoint() -> None:
    assert len(TASK.client_names()) == 12
    assert [len(TASK.source(name)) for name in SOURCES[:3]] == [250, 250, 250]
    assert sum(len(TASK.source(name)) for name in SOURCES) == 1797
    for one, other in itertools.combinations(SOURCES, 2):
        assert not keys(one) & keys(other), (one, other)


def test_partition_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(b"".join(TASK.source(name).y.astype("<i8").tobytes() for name in SOURCES)).hexdigest()
    again = DigitsTask()
    assert hashlib.sha256(b"".join(again.source(n).y.astype("<i8").tobytes() for n in SOURCES)).hexdigest() == digest
    assert hashed_order(6, "a").tolist() == [2, 3, 1, 5, 4, 0]


def test_every_source_has_every_class() -> None:
    for name in SOURCES:
        assert set(TASK.source(name).y.tolist()) == set(range(10)), name


def test_deal_by_hand() -> None:
    parts = deal(7, {"a": 2}, ["b", "c"], salt="s")
    order = hashed_order(7, "s").tolist()
    assert parts["a"].tolist() == sorted(order[:2])
    assert parts["b"].tolist() == sorted(order[2::2])
    assert parts["c"].tolist() == sorted(order[3::2])
    with pytest.raises(ValueError, match="8 rows asked for, 7 there"):
        deal(7, {"a": 8}, [], salt="s")


def test_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(DataError) as caught:
        TASK.source("client/c99")
    assert "client/c11" in caught.value.looked_for[0]


def test_preprocessing_constants_are_those_of_the_central_rows() -> None:
    x = TASK.source("central").x
    assert float(f"{x.mean():.4g}") == MEAN[0]
    assert float(f"{x.std():.4g}") == DEVIATION[0]


def test_network_depends_on_the_seed_and_not_on_torch_state() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = from_network(TASK.create_network(7))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = from_network(TASK.create_network(7))
    other = from_network(TASK.create_network(8))
    assert sum(array.size for array in first.values()) == 6090
    assert "standardise.mean" not in first
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert not np.array_equal(first["head.weight"], other["head.weight"])


def test_features_by_hand() -> None:
    image = np.zeros((1, 1, 8, 8), dtype=np.float32)
    image[0, 0, 2, 5] = 8.0
    image[0, 0, 3, 5] = 8.0
    values = dict(zip(FEATURE_NAMES, TASK.create_features()(torch.from_numpy(image))[0].tolist(), strict=True))
    assert TASK.feature_names == FEATURE_NAMES
    assert values["mean"] == pytest.approx(16 / 64)
    assert values["deviation"] == pytest.approx(np.sqrt(128 / 64 - 0.25**2))
    assert values["ink_level"] == pytest.approx(8.0, rel=1e-5)
    assert values["ink_fraction"] == pytest.approx(2 / 64)
    assert values["centre_x"] == pytest.approx(5.0, rel=1e-5)
    assert values["centre_y"] == pytest.approx(2.5, rel=1e-5)
    assert values["edge_energy_x"] == pytest.approx(4 * 64 / 56)
    assert values["edge_energy_y"] == pytest.approx(2 * 64 / 56)


def test_drift_keeps_the_range_moves_every_feature_and_repeats() -> None:
    x = TASK.source("unseen").x
    before = x.copy()
    drifted = TASK.apply_drift(x, 3)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(drifted, TASK.apply_drift(x, 3))
    assert not np.array_equal(drifted, TASK.apply_drift(x, 4))
    assert drifted.dtype.name == "float32"
    assert drifted.shape == x.shape
    assert drifted.min() >= TASK.input.minimum
    assert drifted.max() <= TASK.input.maximum
    features = TASK.create_features()
    normal, moved = (features(torch.from_numpy(rows)).numpy() for rows in (x, drifted))
    shift = np.abs(moved.mean(0) - normal.mean(0)) / normal.std(0)
    assert (shift > 1.0).sum() >= 5, dict(zip(FEATURE_NAMES, shift, strict=True))
