"""Reads heat and battery from sysfs (Documentation/ABI/testing/sysfs-class-thermal and sysfs-class-power)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYS_CLASS = Path("/sys/class")
#: Zones report nonsense when a driver is half there; readings outside are ignored (degrees Celsius).
PLAUSIBLE_C = (-60.0, 200.0)


@dataclass(frozen=True)
class Power:
    """State of the batteries.

    Attributes:
        percent: Lowest charge; None if there is no battery.
        charging: Whether one of the batteries is charged or full, or the mains are there.
    """

    percent: float | None
    charging: bool


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_read(path))
    except ValueError:
        return None


def temperature_c(root: Path = SYS_CLASS) -> float | None:
    """The hottest thermal zone (degrees Celsius); None if there is none."""
    readings = [_number(zone / "temp") for zone in sorted((root / "thermal").glob("thermal_zone*"))]
    degrees = [value / 1000 for value in readings if value is not None]
    return max((value for value in degrees if PLAUSIBLE_C[0] <= value <= PLAUSIBLE_C[1]), default=None)


def power(root: Path = SYS_CLASS) -> Power:
    """Batteries and mains. Batteries of peripherals (``scope`` is "Device") do not count."""
    percents: list[float] = []
    charging = False
    for supply in sorted((root / "power_supply").glob("*")):
        kind = _read(supply / "type")
        if kind == "Battery" and _read(supply / "scope") != "Device":
            percent = _number(supply / "capacity")
            if percent is not None:
                percents.append(percent)
            charging |= _read(supply / "status") in ("Charging", "Full")
        elif kind in ("Mains", "USB"):
            charging |= _read(supply / "online") == "1"
    return Power(min(percents, default=None), charging)
