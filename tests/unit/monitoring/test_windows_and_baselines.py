from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from skerry_contract.errors import WireError
from skerry_contract.histogram import build_edges, count_values, encode_counts
from skerry_contract.v1.telemetry_pb2 import DriftReport
from skerry_server.monitoring.baselines import ReleaseFacts, collect_baseline, lineage
from skerry_server.monitoring.detector import Array
from skerry_server.monitoring.report_rows import rebuild_column
from skerry_server.monitoring.windows import LARGEST_LOOK, WindowCounts, add_windows, limit_weight, read_window

EDGES = build_edges(
    {"x": np.arange(9.0), "y": np.arange(9.0)},
    cells=3,
    classes=["no", "yes"],
    confidence_edges=[0.5],
    latency_edges=[100.0],
    predictions=np.array([4, 5]),
)


def report(**changes: object) -> DriftReport:
    message = DriftReport(
        rows=6,
        missing=1,
        features=[encode_counts([1, 2, 3]), encode_counts([2, 2, 1])],
        predictions=encode_counts([2, 4]),
    )
    for name, value in changes.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif isinstance(value, int):
            setattr(message, name, value)
        else:
            getattr(message, name).CopyFrom(value)
    return message


def test_report_becomes_counts() -> None:
    window = read_window(report().SerializeToString(), EDGES)
    assert [counts.tolist() for counts in window.features] == [[1, 2, 3], [2, 2, 1]]
    assert (window.rows, window.missing, window.counted) == (6, 1, 5)
    assert window.predictions.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (report(features=[encode_counts([1, 2, 3])]), "drift.features"),
        (report(features=[encode_counts([1, 2, 3]), encode_counts([1, 2])]), "drift.features[y]"),
        (report(features=[encode_counts([9, 2, 3]), encode_counts([1, 2, 1])]), "drift.features[x]"),
        (report(predictions=encode_counts([1])), "drift.predictions"),
        (report(predictions=encode_counts([7, 0])), "drift.predictions"),
        (report(rows=0), "drift.features[x]"),
    ],
)
def test_report_that_does_not_fit_is_refused_by_name(message: DriftReport, field: str) -> None:
    with pytest.raises(WireError) as caught:
        read_window(message.SerializeToString(), EDGES)
    assert caught.value.field == field


def test_garbage_is_refused() -> None:
    with pytest.raises(WireError):
        read_window(b"\xff\xff\xff", EDGES)


def counts_of(rows: int) -> WindowCounts:
    return WindowCounts(rows, 1, 2, 3, (np.array([rows, 0.0]),), np.array([0.0, rows]))


def test_windows_add_up() -> None:
    both = add_windows([counts_of(10), counts_of(5)])
    assert (both.rows, both.missing, both.out_of_range, both.schema_errors) == (15, 2, 4, 6)
    assert both.features[0].tolist() == [15, 0]
    assert both.predictions.tolist() == [0, 15]


def test_no_look_weighs_more_than_its_share() -> None:
    assert limit_weight(np.array([3.0, 1.0])).tolist() == [3, 1]
    assert limit_weight(np.array([3.0, 1.0]) * 2.0**50).tolist() == [LARGEST_LOOK * 0.75, LARGEST_LOOK * 0.25]


@pytest.mark.parametrize(
    ("sizes", "taken", "complete"),
    [([], 0, False), ([400], 1, False), ([399, 1], 2, True), ([500, 10, 10], 2, True), ([100, 100, 100], 3, False)],
)
def test_baseline_takes_the_first_windows_until_there_is_enough(sizes: list[int], taken: int, complete: bool) -> None:
    baseline = collect_baseline(
        [(number, counts_of(size)) for number, size in enumerate(sizes, start=1)], minimum_rows=400, minimum_windows=2
    )
    assert (len(baseline.windows), baseline.complete, baseline.last_id) == (taken, complete, taken)


def facts(release_id: str, parent: str = "", edges: str = "e", *, cure: bool = False) -> ReleaseFacts:
    return ReleaseFacts(release_id, parent, edges, cure)


@pytest.mark.parametrize(
    ("releases", "expected"),
    [
        ([], []),
        ([facts("r3")], ["r3"]),
        ([facts("r3", "r2"), facts("r2", "r1"), facts("r1")], ["r3", "r2", "r1"]),
        ([facts("r3", "r2"), facts("r2", "r1", cure=True), facts("r1")], ["r3", "r2"]),
        ([facts("r3", "r2", cure=True), facts("r2")], ["r3"]),
        ([facts("r3", "r2"), facts("r2", "r1", "other"), facts("r1")], ["r3"]),
        ([facts("r3", "r2"), facts("r2", "r3")], ["r3", "r2"]),
        ([facts("r3", "gone")], ["r3"]),
    ],
)
def test_lineage(releases: list[ReleaseFacts], expected: list[str]) -> None:
    assert lineage("r3", {each.release_id: each for each in releases}.get) == expected


@given(
    st_numpy.arrays(float, 5, elements=st.integers(0, 50).map(float)).filter(lambda counts: counts.sum() > 0),
)
def test_rebuilt_rows_have_the_histogram_they_were_made_from(counts: Array) -> None:
    edges = [0.0, 1.0, 1.5, 4.0]
    rows = rebuild_column(edges, counts, rows=2_000)
    assert (np.diff(rows) >= 0).all()
    shares = count_values(rows, np.array(edges)) / 2_000
    assert shares == pytest.approx(counts / counts.sum(), abs=0.001)


def test_rebuilding_by_hand_and_refusals() -> None:
    assert rebuild_column([0.0, 1.0], np.array([0.0, 4.0, 0.0]), rows=4).tolist() == [0.125, 0.375, 0.625, 0.875]
    with pytest.raises(ValueError, match="2 edges need 3 counts"):
        rebuild_column([0.0, 1.0], np.array([1.0]))
    with pytest.raises(ValueError, match="no count"):
        rebuild_column([0.0, 1.0], np.zeros(3))
