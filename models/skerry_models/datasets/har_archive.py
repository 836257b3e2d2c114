"""Reads the published archive of UCI dataset 341 (raw signals), without trusting it.

Reyes-Ortiz et al., "Transition-Aware Human Activity Recognition Using Smartphones", Neurocomputing 171 (2016).
Members that are used: ``RawData/labels.txt`` (experiment, person, activity 1 to 12, first and last sample, counted
from 1), ``RawData/acc_expNN_userMM.txt`` and ``gyro_...`` (three columns), ``Train|Test/subject_id_*.txt``.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from skerry_models.datasets.har_windows import HarWindows, Samples, Segment, cut_windows

#: Bound on one unpacked member (bytes); the largest published one has about 2 MB, the nested archive about 80 MB.
MEMBER_BYTES = 256 << 20
#: Bound on recordings; 61 are published.
RECORDINGS = 1000


class ArchiveError(Exception):
    """The archive is not what it should be; the text says where."""


def read_archive(path: Path) -> HarWindows:
    """Windows of every recording in the archive, in order of experiment.

    Raises:
        ArchiveError: No archive, a missing member, or one that does not parse.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, str(path))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise ArchiveError(f"{path} is not a readable zip archive: {error}") from error


def _read(archive: zipfile.ZipFile, origin: str) -> HarWindows:
    members = {_inner_name(name): name for name in archive.namelist()}
    if "RawData/labels.txt" not in members:
        nested = [name for name in archive.namelist() if name.lower().endswith(".zip")]
        if len(nested) != 1:
            raise ArchiveError(f"{origin} has neither RawData/labels.txt nor one archive inside")
        with zipfile.ZipFile(io.BytesIO(_member(archive, nested[0]))) as inner:
            members = {_inner_name(name): name for name in inner.namelist()}
            if "RawData/labels.txt" not in members:
                raise ArchiveError(f"{origin}: {nested[0]} has no RawData/labels.txt")
            return _windows(inner, members, origin)
    return _windows(archive, members, origin)


def _inner_name(name: str) -> str:
    """Last two parts of a member's path, so that an outer folder does not matter."""
    return "/".join(name.split("/")[-2:])


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MEMBER_BYTES:
        raise ArchiveError(f"{name} unpacks to {archive.getinfo(name).file_size} bytes, more than {MEMBER_BYTES}")
    return archive.read(name)


def _table(archive: zipfile.ZipFile, members: dict[str, str], name: str, columns: int) -> Samples:
    if name not in members:
        raise ArchiveError(f"the archive has no {name}")
    text = _member(archive, members[name]).decode("ascii", errors="replace")
    try:
        table = np.array(text.split(), dtype=np.float64).reshape(-1, columns)
    except ValueError as error:
        raise ArchiveError(f"{name} is not a table of {columns} numbers per line: {error}") from error
    if not np.isfinite(table).all():
        raise ArchiveError(f"{name} has values that are not finite")
    return table


def _windows(archive: zipfile.ZipFile, members: dict[str, str], origin: str) -> HarWindows:
    segments: dict[tuple[int, int], list[Segment]] = defaultdict(list)
    for experiment, person, activity, first, last in _table(archive, members, "RawData/labels.txt", 5).astype(int):
        if not (1 <= activity <= 12 and 0 < person < 256 and 0 < experiment < 256):
            raise ArchiveError(f"RawData/labels.txt: experiment {experiment}, person {person}, activity {activity}")
        segments[experiment, person].append(Segment(activity=activity - 1, start=first - 1, stop=last))
    if not 1 <= len(segments) <= RECORDINGS:
        raise ArchiveError(f"RawData/labels.txt names {len(segments)} recordings")
    tested = {int(person) for person in np.unique(_table(archive, members, "Test/subject_id_test.txt", 1))}
    parts, rows = [], []
    for experiment, person in sorted(segments):
        suffix = f"exp{experiment:02d}_user{person:02d}.txt"
        total = _table(archive, members, f"RawData/acc_{suffix}", 3)
        gyro = _table(archive, members, f"RawData/gyro_{suffix}", 3)
        try:
            windows, described = cut_windows(total, gyro, segments[experiment, person])
        except ValueError as error:
            raise ArchiveError(f"experiment {experiment}, person {person}: {error}") from error
        parts.append(windows)
        rows += [(activity, start, experiment, person) for activity, start in described]
    activities, starts, experiments, people = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return HarWindows(
        x=np.concatenate(parts),
        y=activities.astype(np.uint8),
        subject=people.astype(np.uint8),
        recording=experiments.astype(np.uint8),
        start=starts.astype(np.int32),
        test=np.isin(people, sorted(tested)),
        origin=origin,
    )
