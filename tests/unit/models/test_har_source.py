from __future__ import annotations

import io
import itertools
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest

from skerry_models.datasets.har_archive import ArchiveError, read_archive
from skerry_models.datasets.har_source import load_har, read_har_file
from skerry_models.datasets.har_windows import Segment, body_acceleration, cut_windows
from skerry_models.errors import DataError
from skerry_models.tasks.har import HarTask

Recording = tuple[int, int, np.ndarray, np.ndarray, list[tuple[int, int, int]]]


def text(table: np.ndarray) -> str:
    return "".join(" ".join(repr(float(value)) for value in row) + "\n" for row in table)


def write_archive(path: Path, recordings: list[Recording], *, outer: str = "", nested: bool = False) -> None:
    """The layout of UCI dataset 341; labels are (activity 0-11, start, stop)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        labels = ""
        for experiment, person, total, gyro, segments in recordings:
            archive.writestr(f"{outer}RawData/acc_exp{experiment:02d}_user{person:02d}.txt", text(total))
            archive.writestr(f"{outer}RawData/gyro_exp{experiment:02d}_user{person:02d}.txt", text(gyro))
            labels += "".join(f"{experiment} {person} {a + 1} {start + 1} {stop}\n" for a, start, stop in segments)
        archive.writestr(f"{outer}RawData/labels.txt", labels)
        archive.writestr(f"{outer}Test/subject_id_test.txt", "2\n2\n")
    if not nested:
        path.write_bytes(buffer.getvalue())
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("HAPT Data Set.zip", buffer.getvalue())


def recording(experiment: int, person: int, length: int = 400) -> Recording:
    generator = np.random.default_rng(experiment)
    total = np.round(generator.standard_normal((length, 3)) * 720) / 720
    return experiment, person, total, generator.standard_normal((length, 3)), [(4, 10, 266), (0, 266, 400), (6, 0, 9)]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No prepared file, an empty cache, and an archive address where nobody listens."""
    monkeypatch.setenv("SKERRY_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SKERRY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SKERRY_HAR_URL", f"http://127.0.0.1:{closed_port()}/archive.zip")
    return tmp_path


def test_missing_data_tells_every_place_and_the_remedy(nowhere: Path) -> None:
    with pytest.raises(DataError) as caught:
        HarTask().source("central")
    places = " | ".join(caught.value.looked_for)
    assert str(nowhere / "data" / "har.npz") in places
    assert str(nowhere / "cache" / "har.npz") in places
    assert "127.0.0.1" in places
    assert "SKERRY_DATA_DIR" in caught.value.remedy
    assert list(nowhere.iterdir()) == []


@pytest.mark.parametrize("nested", [False, True])
def test_archive_is_read_windowed_and_kept(nowhere: Path, monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    archive = nowhere / "archive.zip"
    write_archive(archive, [recording(2, 2), recording(1, 1)], outer="HAPT/", nested=nested)
    monkeypatch.setenv("SKERRY_HAR_URL", archive.as_uri())
    windows = load_har()
    # 256 samples give 3 windows, 134 give 1, 9 give none; experiments in order.
    assert windows.start.tolist() == [10, 74, 138, 266] * 2
    assert windows.y.tolist() == [4, 4, 4, 0] * 2
    assert windows.recording.tolist() == [1] * 4 + [2] * 4
    assert windows.test.tolist() == [False] * 4 + [True] * 4
    _, _, total, gyro, _ = recording(1, 1)
    np.testing.assert_array_equal(windows.x[1][:, 3:6], gyro[74:202].astype(np.float32))
    np.testing.assert_array_equal(windows.x[1][:, 6:], total[74:202].astype(np.float32))
    archive.unlink()
    again = load_har()
    np.testing.assert_array_equal(again.x, windows.x)
    np.testing.assert_array_equal(again.test, windows.test)
    assert again.origin == str(nowhere / "cache" / "har.npz")
    assert [path.name for path in (nowhere / "cache").iterdir()] == ["har.npz"]


def test_broken_archive_leaves_no_cache(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = nowhere / "archive.zip"
    archive.write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("SKERRY_HAR_URL", archive.as_uri())
    with pytest.raises(DataError, match="not a readable zip archive"):
        load_har()
    assert [path.name for path in nowhere.iterdir()] == ["archive.zip"]


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("RawData/labels.txt", "1 1 13 1 200\n", "activity 13"),
        ("RawData/labels.txt", "1 1 5 1\n", "table of 5 numbers"),
        ("RawData/labels.txt", "1 1 5 1 900\n", "segment 0 to 900 outside 0 to 400"),
        ("RawData/labels.txt", "", "0 recordings"),
        ("RawData/acc_exp01_user01.txt", "1 2 nan\n", "not finite"),
        ("RawData/gyro_exp01_user01.txt", "1 2 3\n", r"shape \[T, 3\]"),
        ("Test/subject_id_test.txt", None, "no Test/subject_id_test.txt"),
    ],
)
def test_hostile_archives_are_named(tmp_path: Path, member: str, content: str | None, message: str) -> None:
    good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
    write_archive(good, [recording(1, 1)])
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            if name != member:
                target.writestr(name, source.read(name))
            elif content is not None:
                target.writestr(name, content)
    with pytest.raises(ArchiveError, match=message):
        read_archive(bad)


@pytest.mark.parametrize("address", ["ftp://example.org/x.zip", "not a url"])
def test_other_schemes_are_refused(nowhere: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("SKERRY_HAR_URL", address)
    with pytest.raises(DataError, match="expected an http, https or file URL"):
        load_har()


def test_prepared_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "har.npz"
    column = np.zeros(2, np.uint8)
    transposed = np.zeros((2, 9, 128), np.float32)
    np.savez(path, x=transposed, y=column, subject=column, recording=column, start=column, split=column)
    with pytest.raises(DataError, match="not a file of activity windows"):
        read_har_file(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="cannot be read"):
        read_har_file(path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "har.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_har_file(path)


def test_gravity_of_a_still_phone_is_taken_away() -> None:
    still = np.tile([1.0, 0.0, -0.25], (300, 1))
    np.testing.assert_array_equal(body_acceleration(still), np.zeros((300, 3)))
    step = still.copy()
    step[150:] += 0.5
    moved = body_acceleration(step)
    assert not moved[:150].any()
    assert moved[150, 0] == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(moved, np.round(moved * 8192) / 8192)


def test_windows_start_at_the_segment_and_never_leave_it() -> None:
    total = np.zeros((500, 3))
    windows, described = cut_windows(total, total, [Segment(2, 5, 5 + 192), Segment(1, 300, 427), Segment(3, 300, 428)])
    assert described == [(2, 5), (2, 69), (3, 300)]
    assert windows.shape == (3, 128, 9)
    empty, nothing = cut_windows(total, total, [])
    assert (empty.shape, nothing) == ((0, 128, 9), [])


def test_archive_windows_equal_the_prepared_ones(data_dir: Path, tmp_path: Path) -> None:
    """Real signals of one recording, written as the public archive writes them, give the prepared windows."""
    prepared = read_har_file(data_dir / "har.npz")
    recordings: list[Recording] = []
    with np.load(data_dir / "har_stream.npz") as stream:
        offset = stream["offset"]
        for index in (0,):
            part = slice(offset[index], offset[index + 1])
            signal = stream["signal"][part] * stream["scale"]
            labels = stream["label"][part]
            bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
            segments = [(int(labels[a]), a, b) for a, b in itertools.pairwise(bounds) if labels[a] >= 0]
            who = int(stream["recording"][index]), int(stream["subject"][index])
            recordings.append((*who, signal[:, :3], signal[:, 3:], segments))
    write_archive(tmp_path / "archive.zip", recordings)
    windows = read_archive(tmp_path / "archive.zip")
    mask = np.isin(prepared.recording, np.unique(windows.recording))
    assert mask.sum() == len(windows.y) > 100
    order = np.lexsort((prepared.start[mask], prepared.recording[mask]))
    ours = np.lexsort((windows.start, windows.recording))
    for name in ("y", "subject", "recording", "start"):
        np.testing.assert_array_equal(getattr(windows, name)[ours], getattr(prepared, name)[mask][order])
    np.testing.assert_allclose(windows.x[ours], prepared.x[mask][order], rtol=0, atol=2e-7)
