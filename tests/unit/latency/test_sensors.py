"""Heat, power and power mode: sysfs trees by hand, and a strict fake of jetson-stats that misbehaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skerry_agent.errors import DeviceError
from skerry_agent.policy.device_sensors import AGAIN_S, DeviceSensors
from skerry_agent.policy.jetson import JetsonSensors, saves
from skerry_agent.policy.sensors import KernelSensors, SensorReading, SensorSource


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "profile", "reading"),
    [
        ({}, "", SensorReading(source="kernel")),
        (
            {"thermal/thermal_zone0/temp": "45500", "thermal/thermal_zone1/temp": "61000"},
            "balanced",
            SensorReading(61.0, None, "balanced", False, "kernel"),
        ),
        ({}, "low-power", SensorReading(None, None, "low-power", True, "kernel")),
        # An INA3221 of a Jetson: 5 V x 1.2 A on one rail, 2 W on another; a hwmon with watts.
        (
            {
                "hwmon/hwmon1/in1_input": "5000", "hwmon/hwmon1/curr1_input": "1200",
                "hwmon/hwmon1/in2_input": "4000", "hwmon/hwmon1/curr2_input": "500", "hwmon/hwmon1/curr3_input": "9",
            },
            "",
            SensorReading(None, 6.0, "", None, "kernel"),
        ),
        ({"hwmon/hwmon0/power1_input": "7250000"}, "", SensorReading(None, 7.25, "", None, "kernel")),
        (
            {
                "power_supply/BAT0/type": "Battery", "power_supply/BAT0/capacity": "12",
                "power_supply/BAT0/status": "Discharging", "power_supply/BAT0/power_now": "8500000",
            },
            "performance",
            SensorReading(None, 8.5, "performance", True, "kernel"),
        ),
        (
            {
                "power_supply/BAT0/type": "Battery", "power_supply/BAT0/capacity": "12",
                "power_supply/BAT0/status": "Charging", "power_supply/BAT0/power_now": "8500000",
            },
            "",
            SensorReading(None, None, "", False, "kernel"),
        ),
    ],
)  # fmt: skip
def test_the_kernels_sensors(tmp_path: Path, files: dict[str, str], profile: str, reading: SensorReading) -> None:
    path = tmp_path / "platform_profile"
    if profile:
        path.write_text(profile + "\n")
    assert KernelSensors(tree(tmp_path / "class", files), path).read() == reading


class FakeMode:
    """As jtop.core.nvpmodel.NVPModel: its text is the name of the mode."""

    models: tuple[str, ...] = ("MAXN", "15W", "7W")

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name


class FakeJtop:
    """Only what jetson-stats documents; any other name is an AttributeError."""

    __slots__ = ("closed", "fails", "nvpmodel", "ok_value", "power", "started", "temperature")

    def __init__(self, interval: float) -> None:
        assert interval > 0
        self.started = self.closed = False
        self.ok_value = True
        self.fails: Exception | None = None
        self.nvpmodel: FakeMode | None = FakeMode("7W")
        self.power: Any = {"rail": {}, "tot": {"volt": 5000, "curr": 900, "power": 4532, "avg": 4400}}
        self.temperature: Any = {
            "cpu": {"temp": 48.5, "online": True},
            "gpu": {"temp": -256, "online": False},
            "tj": {"temp": 51.25, "online": True},
        }

    def start(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.started = True

    def ok(self, spin: bool = False) -> bool:
        assert spin, "it would wait"
        assert self.started
        assert not self.closed
        if self.fails is not None:
            raise self.fails
        return self.ok_value

    def close(self) -> None:
        self.closed = True


def open_fake() -> tuple[JetsonSensors, FakeJtop]:
    made: list[FakeJtop] = []

    def create(interval: float) -> FakeJtop:
        made.append(FakeJtop(interval))
        return made[0]

    return JetsonSensors(lambda: create), made[0]


def test_a_jetson() -> None:
    sensors, jtop = open_fake()
    assert sensors.read() == SensorReading(51.25, 4.532, "7W", True, "jetson-stats")
    jtop.nvpmodel = FakeMode("MAXN")
    assert sensors.read().saving is False
    jtop.nvpmodel = None
    assert sensors.read() == SensorReading(51.25, 4.532, "", None, "jetson-stats")
    sensors.close()
    assert jtop.closed


def test_a_jetson_that_fails_says_so() -> None:
    sensors, jtop = open_fake()
    jtop.ok_value = False
    with pytest.raises(DeviceError, match="has ended"):
        sensors.read()
    jtop.ok_value, jtop.power = True, {}
    with pytest.raises(DeviceError, match="cannot be read: 'tot'"):
        sensors.read()
    with pytest.raises(DeviceError, match="cannot be used: No module named 'jtop'"):
        JetsonSensors(lambda: __import__("jtop").jtop)


@pytest.mark.parametrize(
    ("mode", "modes", "saving"),
    [
        ("MODE_10W", ["MODE_15W", "MODE_10W"], True),
        ("MAXN", ["MAXN"], False),
        ("30W", ["MAXN", "30W"], True),
        ("x", [], False),
    ],
)
def test_which_mode_saves(mode: str, modes: list[str], saving: bool) -> None:
    assert saves(mode, modes) is saving


class Flaky:
    """A source that fails on demand."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fails = False
        self.closed = 0

    def read(self) -> SensorReading:
        if self.fails:
            raise DeviceError(self.name, remedy="none")
        return SensorReading(1.0, saving=True, source=self.name)

    def close(self) -> None:
        self.closed += 1


def test_the_better_source_is_left_when_it_fails_and_tried_again() -> None:
    now, opened, better = [0.0], 0, Flaky("better")

    def open_better() -> SensorSource | None:
        nonlocal opened
        opened += 1
        if better.fails:
            raise DeviceError("down", remedy="none")
        return better

    sensors = DeviceSensors(kernel=Flaky("kernel"), open_better=open_better, monotonic=lambda: now[0])
    assert sensors.read().source == "better"
    better.fails = True
    assert [sensors.read().source, sensors.read().source, opened, better.closed] == ["kernel", "kernel", 1, 1]
    now[0] += AGAIN_S
    assert [sensors.read().source, opened] == ["kernel", 2]
    better.fails = False
    now[0] += AGAIN_S
    assert [sensors.read().source, opened] == ["better", 3]
    sensors.close()
    assert better.closed == 2


@pytest.mark.parametrize(("setting", "saving"), [("auto", True), ("yes", True), ("no", False)])
def test_the_owner_has_the_last_word_on_saving(setting: str, saving: bool) -> None:
    opened: list[int] = []

    def nothing_better() -> None:
        opened.append(1)

    sensors = DeviceSensors(setting, kernel=Flaky("kernel"), open_better=nothing_better)
    assert [sensors.read().saving, sensors.read().saving] == [saving, saving]
    assert opened == [1]  # not installed: not looked for again
