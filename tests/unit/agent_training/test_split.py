from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.training.split import split_samples


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 3)).astype(np.float32), np.arange(count)


def test_the_share_is_about_right_and_nothing_is_lost() -> None:
    x, y = samples(2000)
    split = split_samples(x, y, fraction=0.2)
    assert 340 <= len(split.validation_y) <= 460
    assert sorted([*split.train_y, *split.validation_y]) == list(range(2000))
    np.testing.assert_array_equal(split.train_x, x[split.train_y])


@settings(max_examples=50, deadline=None)
@given(count=st.integers(10, 80), dropped=st.integers(0, 5), seed=st.integers(0, 1000))
def test_a_sample_keeps_its_side_while_the_store_changes(count: int, dropped: int, seed: int) -> None:
    x, y = samples(count, seed)
    before = split_samples(x, y)
    after = split_samples(x[dropped:], y[dropped:])
    moved = (set(before.train_y) & set(after.validation_y)) | (set(before.validation_y) & set(after.train_y))
    # Only the one sample that keeps a side from being empty may move.
    assert len(moved) <= 1


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_neither_side_is_empty(count: int) -> None:
    for seed in range(30):
        split = split_samples(*samples(count, seed))
        assert len(split.train_y) >= 1
        assert len(split.validation_y) >= 1


def test_extremes() -> None:
    x, y = samples(1)
    assert len(split_samples(x, y).train_y) + len(split_samples(x, y).validation_y) == 1
    assert len(split_samples(*samples(50), fraction=0.0).validation_y) == 0
    with pytest.raises(ValueError, match="fraction"):
        split_samples(x, y, fraction=1.0)
