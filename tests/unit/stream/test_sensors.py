"""The sensors of our own on real files and pipes, a foreign one that breaks, and the thread that reads them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.stream.intake import Framing, Intake
from skerry_agent.stream.raw_frames import RawFrames
from skerry_agent.stream.replay import Replay
from skerry_agent.stream.rows import Refusal, Row, RowQueue
from skerry_agent.stream.sensors import BUILT_IN, Sensor, SensorEndedError, SensorGapError, SensorSettings, find_sensor
from skerry_agent.stream.sources import SensorSource


def play(sensor: Sensor) -> list[Any]:
    """Readings with their number of samples, "gap" where there is one, until the end."""
    found: list[Any] = []
    while True:
        try:
            samples = sensor.read()
            assert samples.dtype == np.float32
            found.append(samples.tolist())
        except SensorGapError:
            found.append("gap")
        except SensorEndedError:
            return found


def test_a_fifo_outlives_its_writers_and_samples_may_come_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sensor = RawFrames(SensorSettings(str(path), channels=2, rate_hz=50))
    assert (sensor.channels, sensor.rate_hz) == (2, 50)
    data = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    for piece in (data[:11], data[11:20], data[20:]):
        with path.open("wb", buffering=0) as writer:
            writer.write(piece)
        # One reading a piece: whole samples only.
    found = np.concatenate([sensor.read() for _ in range(1)])
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]]
    with path.open("wb", buffering=0) as writer:
        writer.write(data[:9])
    assert sensor.read().tolist() == [[1, 2]]
    assert sensor.read().shape == (0, 2)  # nothing yet, and no end
    with path.open("wb", buffering=0) as writer:
        writer.write(data[9:16])
    assert sensor.read().tolist() == [[3, 4]]
    sensor.close()
    sensor.close()


def test_a_file_ends_and_half_a_sample_is_told(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    path.write_bytes(struct.pack("<3f", 1, 2, 3))
    sensor = RawFrames(SensorSettings(str(path), channels=2))
    assert sensor.read().tolist() == [[1, 2]]
    with pytest.raises(InputError, match="expected samples of 8 bytes, got 4 at the end"):
        sensor.read()
    with pytest.raises(SensorEndedError):
        sensor.read()
    sensor.close()
    with pytest.raises(DeviceError, match="No such file"):
        RawFrames(SensorSettings(str(tmp_path / "gone"), channels=2))


def recording(path: Path, **arrays: Any) -> SensorSettings:
    np.savez(path, **arrays)
    return SensorSettings(str(path), channels=2, speed=0.0)


def test_a_recording_at_full_speed_with_its_scale_and_gaps(tmp_path: Path) -> None:
    settings = recording(
        tmp_path / "r.npz",
        signal=np.array([[1, 2], [3, 4], [5, 6]], dtype=np.int16),
        scale=np.array([0.5, 2.0]),
        rate_hz=50.0,
        offset=np.array([0, 2, 3]),
    )
    sensor = Replay(settings)
    assert (sensor.channels, sensor.rate_hz) == (2, 50.0)
    assert play(sensor) == [[[0.5, 4], [1.5, 8]], "gap", [[2.5, 12]]]


def test_a_recording_in_its_own_time(tmp_path: Path) -> None:
    now = [10.0]
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    settings = recording(tmp_path / "r.npz", signal=np.arange(8).reshape(4, 2), rate_hz=10.0)
    twice = SensorSettings(settings.argument, 2, speed=2.0)
    sensor = Replay(twice, monotonic=lambda: now[0], sleep=sleep)
    # 20 samples a second: the first is due after 0.05 s.
    assert len(sensor.read()) <= 1
    now[0] = 10.1501
    assert sensor.read()[-1].tolist() == [4, 5]  # whoever comes late gets all that are due
    assert waits == [pytest.approx(0.05)]
    slow = Replay(SensorSettings(settings.argument, 2, rate_hz=1.0, speed=1.0), monotonic=lambda: now[0], sleep=sleep)
    assert (slow.read().shape, waits[-1]) == ((0, 2), 0.2)  # nothing due yet: it says so soon


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((2, 2))}, r"signal: expected numbers \[samples, channels\], got x"),
        ({"signal": np.zeros(3)}, r"got float64 \[3\]"),
        ({"signal": np.array([["a"]])}, "signal"),
        ({"signal": np.zeros((2, 2)), "scale": np.ones(3)}, "scale: expected 2 numbers"),
        ({"signal": np.zeros((2, 2)), "rate_hz": np.array([1, 2])}, "rate_hz"),
        ({"signal": np.zeros((2, 2)), "offset": np.array([0, 3])}, "offset: expected rising from 0 to 2"),
        ({"signal": np.zeros((2, 2)), "offset": np.array([0, 2, 1, 2])}, "offset"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Replay(recording(tmp_path / "r.npz", **arrays))


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        Replay(SensorSettings(str(tmp_path / "gone.npz"), 2))
    for name, data in (("a.npz", b"nonsense"), ("b.npz", b""), ("c.npz", b"PK\3\4broken")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            Replay(SensorSettings(str(tmp_path / name), 2))
    np.save(tmp_path / "d.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match="npz"):
        Replay(SensorSettings(str(tmp_path / "d.npy"), 2))
    with pytest.raises(InputError, match="--rate"):
        Replay(SensorSettings(recording(tmp_path / "r.npz", signal=np.zeros((2, 2))).argument, 2))


def test_a_package_brings_a_sensor_and_an_unknown_one_names_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "foreign_imu-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-imu\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[skerry.sensors]\nimu = foreign_imu:open_imu\nbroken = foreign_imu:gone\nraw = foreign_imu:gone\n"
    )
    (tmp_path / "foreign_imu.py").write_text("def open_imu(settings):\n    return ('imu', settings)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = SensorSettings("bus-1", channels=9)
    assert find_sensor("imu")(settings) == ("imu", settings)  # type: ignore[comparison-overlap]
    assert find_sensor("raw") is BUILT_IN["raw"]
    with pytest.raises(InputError, match="sensor broken: expected a package that loads, got AttributeError"):
        find_sensor("broken")
    with pytest.raises(InputError, match="one of the sensors broken, imu, raw, replay, got sensor:lidar"):
        find_sensor("lidar")


class Shaky:
    """A foreign driver: gives what its script says."""

    channels, rate_hz = 2, 0.0

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.closed = 0

    def read(self) -> npt.NDArray[np.float32]:
        step = self.script.pop(0) if self.script else SensorEndedError("over")
        if isinstance(step, BaseException):
            raise step
        return step  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closed += 1
        raise RuntimeError("the driver does not like that")


def ones(count: int) -> npt.NDArray[np.float32]:
    return np.ones((count, 2), np.float32)


def test_a_sensor_that_breaks_is_opened_again_and_no_window_spans_that(wait_until: Callable[..., None]) -> None:
    queue = RowQueue(16, keep="newest")
    intake = Intake(Framing(windows=True), (2, 3), queue)
    first = Shaky([ones(2), ValueError("driver"), "never read"])
    second = Shaky([ones(2), np.zeros((1, 9), np.float32), ones(1), SensorGapError("lost"), None, "never read"])
    third = Shaky([ones(0), ones(3)])
    opened: list[Any] = [DeviceError("/dev/imu", remedy="plug it in"), second, OSError("busy"), third]

    def reopen() -> Sensor:
        step = opened.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step  # type: ignore[no-any-return]

    source = SensorSource(intake, first, reopen=reopen, on_end=queue.close, name="sensor:imu")
    source.start()
    found: list[Row | Refusal] = []

    def ended() -> bool:
        item = queue.take(0.05)
        found.extend([] if item is None else [item])
        return queue.ended

    wait_until(ended, what="the end")
    source.stop()
    assert [type(item) for item in found].count(Row) == 2
    assert [item.error for item in found if isinstance(item, Refusal)] == ["samples: expected [n, 2], got [1, 9]"]
    assert (first.closed, second.closed, third.closed, opened) == (1, 1, 1, [])
    assert intake.counts.gaps == 3


def test_a_source_that_was_never_started_gives_its_sensor_back() -> None:
    class Quiet(Shaky):
        def close(self) -> None:
            self.closed += 1

    sensor = Quiet([])
    queue = RowQueue(1, keep="all")
    source = SensorSource(
        Intake(Framing(windows=True), (2, 3), queue), sensor, reopen=lambda: sensor, on_end=queue.close, name="s"
    )
    source.stop()
    assert sensor.closed == 1
