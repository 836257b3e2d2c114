"""Settings of each strategy: defaults, bounds, and the name of the field in every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from skerry_server.errors import InvalidRequestError
from skerry_server.federation.strategies import STRATEGIES, check_strategy_settings
from skerry_server.federation.strategies.settings import FIELDS


def test_every_strategy_has_fields_and_defaults_within_their_bounds() -> None:
    assert list(FIELDS) == sorted(FIELDS, key=list(STRATEGIES).index)
    assert FIELDS.keys() == STRATEGIES.keys()
    for name in STRATEGIES:
        defaults = check_strategy_settings(name, {})
        assert defaults.keys() == FIELDS[name].keys()
        assert check_strategy_settings(name, json.loads(json.dumps(defaults))) == defaults


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("fedavgm", {"momentum": 0}, {"momentum": 0.0, "server_learning_rate": 1.0}),
        ("fedbuff", {"buffer": 3.0}, 3),
        ("krum", {"byzantine": 2}, 2),
        ("krum", {"byzantine": 0.25}, 0.25),
        ("krum", {"byzantine": 0}, 0.0),
        ("fedper", {"personal": "head.*, neck.*"}, ["head.*", "neck.*"]),
        ("fedper", {"personal": ["head.*"]}, ["head.*"]),
    ],
)
def test_what_is_accepted(name: str, given: dict[str, Any], expected: Any) -> None:
    checked = check_strategy_settings(name, given)
    got = checked if isinstance(expected, dict) else checked[next(iter(given))]
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fedavgm", {"momentum": 1.0}),
        ("fedavgm", {"momentum": True}),
        ("fedavgm", {"momentum": "0.9"}),
        ("fedavgm", {"server_learning_rate": 0.0}),
        ("fedadam", {"tau": float("nan")}),
        ("fedadam", {"beta_2": -0.1}),
        ("fedadagrad", {"beta_1": 0.5}),
        ("fedbuff", {"buffer": 0}),
        ("fedbuff", {"buffer": 2.5}),
        ("qfedavg", {"q": 101}),
        ("krum", {"byzantine": 0.5}),
        ("krum", {"byzantine": 1.5}),
        ("krum", {"byzantine": -1}),
        ("bulyan", {"byzantine": 0.25}),
        ("trimmedmean", {"trim": 0.5}),
        ("trimmedmean", {"trim": 0.0}),
        ("fedper", {"personal": ["a b"]}),
        ("fedper", {"personal": [""]}),
        ("fedper", {"personal": ["x"] * 65}),
        ("fedper", {"personal": 3}),
        ("median", {"trim": 0.1}),
    ],
)
def test_what_is_refused(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_strategy_settings(name, given)
    assert caught.value.field == f"settings.strategy_settings.{next(iter(given))}"


def test_knowing_the_strategies_by_name_loads_none_of_the_heavy_libraries() -> None:
    program = (
        "import sys; from skerry_server.federation.strategies import check_strategy; check_strategy('fedadam');"
        "print(sorted({'flwr', 'numba', 'scipy', 'torch', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
