"""What carries a simulation's messages: engines behind one protocol, chosen by name."""

from __future__ import annotations

from skerry_simulation.engines.engine import SimulationEngine
from skerry_simulation.engines.flower_ray import RayEngine
from skerry_simulation.engines.sequential import SequentialEngine

#: Name in a scenario to engine; extend it to add one.
ENGINES: dict[str, type[SimulationEngine]] = {"sequential": SequentialEngine, "ray": RayEngine}

__all__ = ["ENGINES", "RayEngine", "SequentialEngine", "SimulationEngine"]
