"""Everybody's model against the devices' own, from the devices' answers to the campaign's result."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_server.api.campaign_views import personal
from skerry_server.federation.rounds import personal_comparison
from skerry_server.federation.rounds.journal import JournalledUpdate
from skerry_server.store.tables import CampaignRound
from unit.federation.world import World, three

FIGURES = {
    "personal_devices": 3.0,
    "personal_accuracy_global": 0.6,
    "personal_accuracy": 0.7,
    "personal_gaining": 1.0,
    "personal_losing": 1.0,
}


def update(name: str, **metrics: float) -> JournalledUpdate:
    return JournalledUpdate(name, 10, {"validation_examples": 5.0, **metrics}, "0" * 64)


def test_figures_by_hand() -> None:
    assert personal_comparison.figures([]) == {}
    assert personal_comparison.figures([(0.5, 1.0), (0.5, 0.25), (0.75, 0.75), (0.25, 0.5)]) == {
        "personal_devices": 4.0,
        "personal_accuracy_global": 0.5,
        "personal_accuracy": 0.625,
        "personal_gaining": 2.0,
        "personal_losing": 1.0,
    }


def test_only_devices_that_measured_both_count() -> None:
    counted = update("a", validation_accuracy=0.5, personal_accuracy=0.75)
    others = [
        update("no own model", validation_accuracy=1.0),
        update("no samples", validation_accuracy=0.0, personal_accuracy=0.0, validation_examples=0.0),
        update("a gateway", validation_accuracy=1.0, personal_accuracy=1.0, devices=4.0),
    ]
    found = personal_comparison.of_updates([counted, *others])
    assert found == personal_comparison.figures([(0.5, 0.75)])
    assert personal_comparison.of_updates(others) == {}


def test_rounds_and_result_of_a_campaign_have_the_figures(tmp_path: Path) -> None:
    """Accuracies .4, .6, .8 of everybody's model; .8, .6, .7 of their own."""
    devices = three()
    for device, own in zip(devices, (0.8, 0.6, 0.7), strict=True):
        device.personal_accuracy = own
    world = World(tmp_path, devices, rounds=2)
    result = world.run().run()
    for record in world.journal.rounds():
        assert personal_comparison.of_metrics(record.metrics) == pytest.approx(FIGURES)
    assert personal_comparison.of_metrics(result.metrics) == pytest.approx(FIGURES)


def test_a_campaign_without_own_parameters_has_none_of_them(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=1)
    result = world.run().run()
    named = {name for name in (*result.metrics, *world.journal.rounds()[0].metrics) if name.startswith("personal")}
    assert named == set()


def test_the_newest_round_that_compared_is_shown() -> None:
    rounds = [CampaignRound(number=1, metrics=FIGURES), CampaignRound(number=2, metrics={"loss": 1.0})]
    shown = personal(rounds)
    assert shown is not None
    assert (shown.round, shown.devices, shown.gaining, shown.losing) == (1, 3, 1, 1)
    assert (shown.global_accuracy, shown.personal_accuracy) == (0.6, 0.7)
    assert personal(rounds[1:]) is None
