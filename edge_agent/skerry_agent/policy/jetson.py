"""Heat, power and power mode of an NVIDIA Jetson, from jetson-stats: the only file that knows its package ``jtop``.

The package is not one of ours to install (it is AGPL, and its service needs root): it is used where the owner of the
board has it. What is read is part of its documented interface: ``temperature`` {name: {"temp", "online"}} in degrees
Celsius, ``power`` {"tot": {"power"}} in milliwatts, and ``nvpmodel`` with the name of the mode and ``models``, all
names.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from skerry_agent.errors import DeviceError
from skerry_agent.policy.sensors import PLAUSIBLE_C, SensorReading

SOURCE = "jetson-stats"
#: How often its service is asked (seconds).
PERIOD_S = 1.0
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*W", re.IGNORECASE)


def _import_jtop() -> Any:
    return importlib.import_module("jtop").jtop


class JetsonSensors:
    """See :class:`skerry_agent.policy.sensors.SensorSource`.

    Args:
        create: Gives the class ``jtop.jtop``.

    Raises:
        DeviceError: The package is not installed, or its service does not answer.
    """

    def __init__(self, create: Callable[[], Any] = _import_jtop) -> None:
        try:
            self._jtop: Any = create()(interval=PERIOD_S)
            self._jtop.start()
        except Exception as error:  # a foreign package: an ImportError, its own exceptions, those of its socket
            raise DeviceError(
                f"jetson-stats cannot be used: {error}", remedy="start its service jtop.service"
            ) from error

    def read(self) -> SensorReading:
        """See :class:`SensorSource`."""
        try:
            if not self._jtop.ok(spin=True):
                raise DeviceError("jetson-stats has ended", remedy="start its service jtop.service")
            mode = self._jtop.nvpmodel
            name = "" if mode is None else str(mode)
            return SensorReading(
                temperature_c=_hottest(self._jtop.temperature.values()),
                power_w=float(self._jtop.power["tot"]["power"]) / 1000,
                power_mode=name,
                saving=None if mode is None else saves(name, [str(model) for model in mode.models]),
                source=SOURCE,
            )
        except DeviceError:
            raise
        except Exception as error:
            raise DeviceError(
                f"jetson-stats cannot be read: {error}", remedy="start its service jtop.service"
            ) from error

    def close(self) -> None:
        """End its thread."""
        with contextlib.suppress(Exception):
            self._jtop.close()


def saves(mode: str, modes: Iterable[str]) -> bool:
    """Whether a mode is the one with the smallest budget of several; one that names no watts has none.

    >>> saves("7W", ["MAXN", "15W", "7W"]), saves("15W", ["MAXN", "15W", "7W"]), saves("15W", ["15W"])
    (True, False, False)
    """
    budgets = sorted({_budget_w(name) for name in modes})
    return len(budgets) > 1 and _budget_w(mode) == budgets[0]


def _budget_w(mode: str) -> float:
    found = _BUDGET.search(mode)
    return float("inf") if found is None else float(found[1])


def _hottest(zones: Iterable[dict[str, Any]]) -> float | None:
    degrees = [float(zone["temp"]) for zone in zones if zone.get("online", True)]
    return max((value for value in degrees if PLAUSIBLE_C[0] <= value <= PLAUSIBLE_C[1]), default=None)
