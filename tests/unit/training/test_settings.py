"""Settings of a training run: every field, at and beyond its bounds."""

from __future__ import annotations

import math

import pytest

from skerry_models.task import TrainingDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.training.settings import TrainingSettings, parse_settings

DEFAULTS = TrainingDefaults(epochs=30, batch_size=32, learning_rate=0.05, momentum=0.9)


def test_what_is_left_out_comes_from_the_task() -> None:
    assert parse_settings(DEFAULTS, {}) == TrainingSettings(30, 32, 0.05, 0.9)
    chosen = parse_settings(DEFAULTS, {"epochs": 2, "learning_rate": 1, "warm_start": "release/digits-r1"})
    assert (chosen.epochs, chosen.batch_size, chosen.learning_rate, chosen.warm_start) == (
        2,
        32,
        1.0,
        "release/digits-r1",
    )
    assert parse_settings(TrainingDefaults(1, 1, 1.0, 0.0), chosen.as_dict()) == chosen


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("epochs", [1, 10_000], [0, -1, 10_001, 1.5, "3", True, None]),
        ("batch_size", [1, 65_536], [0, 65_537, "x"]),
        ("learning_rate", [1e-9, 10], [0, -0.1, 10.1, math.nan, math.inf, "0.1", True]),
        ("momentum", [0, 0.999], [1, -0.1, math.nan]),
        ("weight_decay", [0, 1], [1.1, -1e-9]),
        ("schedule", ["cosine", "constant"], ["linear", 1]),
        ("seed", [0, 2**31 - 1], [-1, 2**31]),
        ("device", ["auto", "cpu", "cuda"], ["cuda:1", ["cpu"]]),
        ("amp", [True, False], [1, "yes"]),
        ("warm_start", ["", "release/a", "campaign/b"], ["a", "release/", "other/x", "/x", 3]),
    ],
)
def test_bounds(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert getattr(parse_settings(DEFAULTS, {field: value}), field) == value
    for value in bad:
        with pytest.raises(InvalidRequestError) as wrong:
            parse_settings(DEFAULTS, {field: value})
        assert wrong.value.field == f"settings.{field}"
        assert wrong.value.got == str(value)


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError) as wrong:
        parse_settings(DEFAULTS, {"epochs": 3, "epoch": 3})
    assert wrong.value.field == "settings.epoch"
    assert "learning_rate" in wrong.value.expected
