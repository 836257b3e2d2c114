from __future__ import annotations

import math

import numpy as np
import pytest

from skerry_models.evaluation import evaluate_parameters, evaluate_scores
from skerry_models.parameters import initial_parameters
from skerry_models.task import Dataset
from skerry_models.tasks.digits import DigitsTask


def test_figures_by_hand() -> None:
    scores = np.array([[2, 0, 0], [0, 1, 0], [3, 0, 0], [0, 5, 0]], dtype=np.float32)
    labels = np.array([0, 1, 1, 1])
    result = evaluate_scores(scores, labels)
    assert result.accuracy == 0.75
    # Class 0: one hit, one true, two guessed: 2/3. Class 1: two hits, three true, two guessed: 4/5. Class 2: no rows.
    assert result.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert list(result.per_class) == [1.0, pytest.approx(2 / 3), None]
    assert result.confusion == ((1, 0, 0), (1, 2, 0), (0, 0, 0))
    assert result.n == 4
    losses = [
        math.log(math.exp(2) + 2) - 2,
        math.log(math.exp(1) + 2) - 1,
        math.log(math.exp(3) + 2),
        math.log(math.exp(5) + 2) - 5,
    ]
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_large_scores_do_not_overflow() -> None:
    result = evaluate_scores(np.array([[1e6, -1e6]], dtype=np.float32), np.array([1]))
    assert result.loss == pytest.approx(2e6)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64)),
        (np.zeros((2, 3)), np.zeros(3, np.int64)),
        (np.zeros((2, 3)), np.array([0, 3])),
        (np.zeros((2, 3)), np.array([0, -1])),
        (np.array([[0.0, np.nan]]), np.array([0])),
    ],
)
def test_bad_scores_are_refused(scores: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError):
        evaluate_scores(scores.astype(np.float32), labels)


def test_rows_are_judged_in_batches_that_a_graph_accepts() -> None:
    task = DigitsTask()
    data = task.source("unseen")
    state = initial_parameters(task, 0)
    whole = evaluate_parameters(task, state, data)
    parts = [evaluate_parameters(task, state, data.take(np.arange(start, start + 50))) for start in range(0, 250, 50)]
    assert whole.n == 250
    assert whole.accuracy == pytest.approx(np.mean([part.accuracy for part in parts]))
    assert whole.loss == pytest.approx(np.mean([part.loss for part in parts]), rel=1e-5)
    with pytest.raises(ValueError, match="empty"):
        evaluate_parameters(task, state, Dataset(data.x[:0], data.y[:0]))
