"""Scenario files: what is right is read, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_simulation.demo.settings import DemoSettings
from skerry_simulation.errors import ScenarioError
from skerry_simulation.scenario import read_scenario

EXAMPLES = Path(__file__).resolve().parents[3] / "simulation" / "scenarios"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    assert read_scenario(path).task


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("seed = 1", "task"),
        ("task = 'digits'\nspeed = 3", "speed"),
        ("task = 'digits'\n[population]\nclients = 0", "population.clients"),
        ("task = 'digits'\n[engine]\nname = 'quantum'", "engine.name"),
        ("task = 'digits'\nseed = 'one'", "seed"),
        ("task = ", "scenario.toml"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_scenario(path)
    assert caught.value.field.endswith(field)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="readable file"):
        read_scenario(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(("devices", "drifted"), [(2, 1), (3, 1), (5, 2), (8, 3), (12, 5)])
def test_forty_percent_of_the_devices_drift_but_never_all(tmp_path: Path, devices: int, drifted: int) -> None:
    assert DemoSettings("digits", devices, tmp_path, tmp_path).drifted_devices == drifted
