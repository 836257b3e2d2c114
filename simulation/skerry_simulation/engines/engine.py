"""The seam between a simulated campaign and what runs its devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from skerry_server.federation.exchange import Exchange
from skerry_simulation.clients import ClientPlan

T = TypeVar("T")

#: Device to node, as the round loop wants it.
Devices = dict[str, int | None]


class SimulationEngine(Protocol):
    """Runs a campaign's server side against simulated devices."""

    def __init__(self, *, workers: int) -> None:
        """``workers``: processes that the engine may use."""
        ...

    def run(self, plan: ClientPlan, body: Callable[[Exchange, Devices], T]) -> T:
        """Start the devices, call ``body`` with an exchange and the devices behind it, stop the devices.

        Raises:
            SimulationError: The engine failed.
        """
        ...
