"""Reads heat, battery and power from sysfs.

Sources: Documentation/ABI/testing/sysfs-class-thermal, sysfs-class-power, sysfs-class-hwmon and
sysfs-platform_profile of the Linux kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SYS_CLASS = Path("/sys/class")
#: The power mode that the owner of a laptop or a board has picked, and those that save energy.
PLATFORM_PROFILE = Path("/sys/firmware/acpi/platform_profile")
SAVING_PROFILES = frozenset({"low-power", "quiet"})
#: Charge below which a device that is not charged saves energy (percent).
SAVING_PERCENT = 20.0
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


@dataclass(frozen=True)
class SensorReading:
    """What a device says of its heat and power.

    Attributes:
        temperature_c: Hottest zone (degrees Celsius); None if it does not say.
        power_w: Power of the whole device (W); None if it does not say.
        power_mode: Name of the power mode; empty if it has none.
        saving: Whether that mode, or a low battery, asks for less work; None if it does not say.
        source: Who said so: "kernel" or "jetson-stats".
    """

    temperature_c: float | None = None
    power_w: float | None = None
    power_mode: str = ""
    saving: bool | None = None
    source: str = ""


class SensorSource(Protocol):
    """Where readings come from."""

    def read(self) -> SensorReading:
        """A reading of this moment; raises DeviceError if there is none."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


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


def power_w(root: Path = SYS_CLASS) -> float | None:
    """Power that sensors of the board measure (W): the largest one, which is that of the whole board; None without any.

    hwmon gives ``powerN_input`` in microwatts; the INA3221 of a Jetson and a fuel gauge give volts and amperes.
    """
    readings = [_number(path) for path in (root / "hwmon").glob("hwmon*/power*_input")]
    watts = [value / 1e6 for value in readings if value is not None]
    for monitor in (root / "hwmon").glob("hwmon*"):
        for current in monitor.glob("curr*_input"):
            amperes = _number(current)
            volts = _number(monitor / current.name.replace("curr", "in"))
            if amperes is not None and volts is not None:
                watts.append(amperes / 1e3 * volts / 1e3)
    for supply in (root / "power_supply").glob("*"):
        if _read(supply / "type") == "Battery" and _read(supply / "status") == "Discharging":
            value = _number(supply / "power_now")
            if value is not None:
                watts.append(abs(value) / 1e6)
    return max((value for value in watts if value >= 0.0), default=None)


class KernelSensors:
    """What every Linux says; see :class:`SensorSource`."""

    def __init__(self, root: Path = SYS_CLASS, profile: Path = PLATFORM_PROFILE) -> None:
        self._root = root
        self._profile = profile

    def read(self) -> SensorReading:
        """See :class:`SensorSource`."""
        profile, supply = _read(self._profile), power(self._root)
        low = supply.percent is not None and not supply.charging and supply.percent < SAVING_PERCENT
        known = bool(profile) or supply.percent is not None
        return SensorReading(
            temperature_c=temperature_c(self._root),
            power_w=power_w(self._root),
            power_mode=profile,
            saving=low or profile in SAVING_PROFILES if known else None,
            source="kernel",
        )

    def close(self) -> None:
        """Nothing is held."""
