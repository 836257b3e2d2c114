"""Both engines run production's code, so they find the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skerry_simulation import cli
from skerry_simulation.campaign.run import SimulationResult, run_scenario
from skerry_simulation.errors import ScenarioError
from skerry_simulation.scenario import Engine, Population, Scenario

pytestmark = pytest.mark.timeout(300)
SIM = [sys.executable, "-m", "skerry_simulation.cli"]


def scenario(engine: str, **campaign: object) -> Scenario:
    return Scenario.model_validate(
        {
            "task": "digits",
            "seed": 3,
            "population": {"clients": 4},
            "campaign": {"rounds": 2, "local_epochs": 1, **campaign},
            "engine": {"name": engine, "workers": 2},
        }
    )


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    return run_scenario(scenario("sequential"), tmp_path_factory.mktemp("sequential"))


def test_the_same_scenario_gives_the_same_bits(sequential: SimulationResult, tmp_path: Path) -> None:
    again = run_scenario(scenario("sequential"), tmp_path)
    assert again.rounds[-1]["accuracy"] == sequential.rounds[-1]["accuracy"]
    for name, array in sequential.parameters.items():
        assert again.parameters[name].tobytes() == array.tobytes()


def test_flower_s_engine_agrees(sequential: SimulationResult, tmp_path: Path) -> None:
    ray = run_scenario(scenario("ray"), tmp_path)
    assert [row["accepted"] for row in ray.rounds] == [4, 4]
    for name, array in sequential.parameters.items():
        # Updates arrive in another order: float32 sums differ by rounding.
        np.testing.assert_allclose(ray.parameters[name].astype(np.float64), array.astype(np.float64), rtol=0, atol=1e-5)
    assert ray.accuracy["unseen"] == pytest.approx(sequential.accuracy["unseen"], abs=0.01)


def test_a_proximal_term_changes_the_model(sequential: SimulationResult, tmp_path: Path) -> None:
    pulled = run_scenario(scenario("sequential", strategy="fedprox", proximal_mu=1.0), tmp_path)
    assert any(not np.array_equal(pulled.parameters[name], array) for name, array in sequential.parameters.items())


def test_more_clients_than_the_task_has_are_refused(tmp_path: Path) -> None:
    wish = Scenario(task="digits", population=Population(clients=500), engine=Engine())
    with pytest.raises(ScenarioError) as caught:
        run_scenario(wish, tmp_path)
    assert caught.value.field == "population.clients"
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_json_and_a_page(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("task = 'digits'\n[population]\nclients = 2\n[campaign]\nrounds = 1\nlocal_epochs = 1\n")
    command = [*SIM, "run", str(file), "--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "page")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "r.json").read_text())["rounds"]) == 1
    assert (tmp_path / "page" / "index.html").read_text().count("<svg") == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task = 'digits'\n[campaign]\nrounds = 0", "settings.rounds"),
        ("task = 'digits'\n[campaign]\nstrategy = 'magic'", "fedavg"),
        ("task = 'poetry'", "digits"),
    ],
)
def test_a_wrong_scenario_is_one_clear_line(
    tmp_path: Path, text: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["skerry-sim", "run", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    assert ended.value.code in (1, 2)
    what, error = capsys.readouterr().err.splitlines()
    assert "sequential engine" in what
    assert error.startswith("skerry-sim: ")
    assert words in error
    assert list(tmp_path.iterdir()) == [file]
