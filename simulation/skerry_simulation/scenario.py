"""A federated simulation as a file: which task, which clients, which campaign, which engine.

.. code-block:: toml

    task = "digits"
    seed = 1

    [population]
    clients = 8

    [campaign]
    strategy = "fedprox"
    rounds = 5
    proximal_mu = 0.01

    [engine]
    name = "sequential"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skerry_simulation.errors import ScenarioError

EngineName = Literal["sequential", "ray"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Population(_Section):
    """Who takes part."""

    clients: int = Field(default=8, ge=1, le=10_000, description="The task's first clients, by name.")


class Engine(_Section):
    """What carries the simulation."""

    name: EngineName = Field(default="sequential", description="sequential: one process. ray: Flower's engine on Ray.")
    workers: int = Field(default=2, ge=1, le=256, description="Processes of the ray engine.")


class Scenario(_Section):
    """One simulation. Unknown fields are refused."""

    task: str = Field(description="A registered task.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of the initial parameters and the order of samples.")
    population: Population = Field(default_factory=Population)
    campaign: dict[str, Any] = Field(
        default_factory=dict,
        description="strategy, and what differs from the task's defaults: rounds, local_epochs, learning_rate, ...",
    )
    engine: Engine = Field(default_factory=Engine)


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        ScenarioError: It cannot be read, is not TOML, or has a field that is wrong; the field is named.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ScenarioError(str(path), expected="a readable file", got=error.strerror) from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(str(path), expected="a TOML document", got=error) from error
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ScenarioError(field, expected=first["msg"], got=first["input"]) from error
