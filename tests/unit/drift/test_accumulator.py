"""Windows and their counts, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_agent.drift.accumulator import BLOCK_ROWS, DriftAccumulator, EdgeTable, WindowLimits, WindowNumbers
from skerry_agent.engine.backend import Floats
from skerry_agent.engine.errors import MissingValueError, OutOfRangeError, SchemaError
from skerry_contract.histogram import build_edges, count_values, decode_counts, encode_counts
from skerry_contract.v1.telemetry_pb2 import DriftReport, FeatureEdges, HistogramEdges, UplinkMessage

EDGES = HistogramEdges(
    features=[
        FeatureEdges(name="a", edges=[0.0, 1.0], reference=encode_counts([1, 1, 1])),
        FeatureEdges(name="b", edges=[-1.0, 0.0, 1.0, 2.0], reference=encode_counts([1, 1, 1, 1, 1])),
    ],
    classes=["no", "yes"],
    confidence_edges=[0.6, 0.9],
    latency_edges=[100.0],
    reference_predictions=encode_counts([2, 2]),
)
SHA = b"\x11" * 32


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Window:
    """An accumulator and what it reported."""

    def __init__(self, *, rows: int = 1000, seconds: float = 60.0, edges: HistogramEdges = EDGES) -> None:
        self.reports: list[DriftReport] = []
        self.clock = Clock()
        self.numbers = WindowNumbers("boot-1")
        self.edges = edges
        self.accumulator = self.another("release-1", rows, seconds)

    def another(self, release_id: str, rows: int = 1000, seconds: float = 60.0) -> DriftAccumulator:
        return DriftAccumulator(
            release_id=release_id,
            edges=self.edges,
            edges_sha256=SHA,
            limits=WindowLimits(rows, seconds),
            numbers=self.numbers,
            emit=self.reports.append,
            monotonic=self.clock,
            wall=self.clock,
        )


def floats(values: object) -> Floats:
    return np.array(values, dtype=np.float32)


# ln 3: softmax (1/4, 3/4). ln 19: softmax (1/20, 19/20).
LN3, LN19 = float(np.log(3)), float(np.log(19))


def cells(report: DriftReport) -> dict[str, list[int]]:
    return {
        "a": decode_counts(report.features[0], cells=3).tolist(),
        "b": decode_counts(report.features[1], cells=5).tolist(),
        "predictions": decode_counts(report.predictions, cells=2).tolist(),
        "confidence": decode_counts(report.confidence, cells=3).tolist(),
        "latency": decode_counts(report.latency, cells=2).tolist(),
    }


def test_counts_by_hand() -> None:
    window = Window()
    record = window.accumulator.record
    record(floats([[-0.5, 2.5]]), floats([[0, LN3]]), 50.0)
    record(floats([[0.0, -1.0]]), floats([[LN19, 0]]), 100.0)  # on an edge: the cell below it
    record(floats([[1.5, 0.5], [0.5, 0.5]]), floats([[0, 0.1], [0, LN19]]), 150.0)
    window.clock.now = 1002.5
    window.accumulator.flush()
    (report,) = window.reports
    assert cells(report) == {
        "a": [2, 1, 1],
        "b": [1, 0, 2, 0, 1],
        "predictions": [1, 3],
        "confidence": [1, 1, 2],
        "latency": [2, 2],
    }
    assert (report.rows, report.window, report.boot_id) == (4, 1, "boot-1")
    assert (report.release_id, report.edges_sha256) == ("release-1", SHA)
    assert (report.started_unix_ms, report.ended_unix_ms) == (1_000_000, 1_002_500)


def test_a_window_closes_after_its_rows_and_the_next_starts_empty() -> None:
    window = Window(rows=3)
    for _ in range(7):
        window.accumulator.record(floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    assert [(r.window, r.rows) for r in window.reports] == [(1, 3), (2, 3)]
    window.accumulator.flush()
    assert [(r.window, r.rows) for r in window.reports] == [(1, 3), (2, 3), (3, 1)]


def test_a_batch_is_never_split() -> None:
    window = Window(rows=10)
    for _ in range(2):
        window.accumulator.record(floats([[0.5, 0.5]] * 7), floats([[0, 1]] * 7), 1.0)
    assert [r.rows for r in window.reports] == [14]
    assert cells(window.reports[0])["a"] == [0, 14, 0]


def test_a_window_closes_after_its_time() -> None:
    window = Window(seconds=60)
    window.accumulator.record(floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    window.clock.now += 59.9
    window.accumulator.tick()
    assert window.reports == []
    window.clock.now += 0.1
    window.accumulator.tick()
    assert [r.rows for r in window.reports] == [1]


def test_another_limit_holds_from_the_next_window_on() -> None:
    window = Window(rows=4, seconds=60)
    one = (floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    window.accumulator.record(*one)
    window.accumulator.limit(WindowLimits(2, 5.0))
    window.clock.now += 10
    window.accumulator.tick()
    assert window.reports == [], "the open window keeps the limits that it was opened with"
    for _ in range(5):
        window.accumulator.record(*one)
    assert [r.rows for r in window.reports] == [4, 2]
    window.accumulator.record(*one)
    window.clock.now += 5
    window.accumulator.tick()
    assert [r.rows for r in window.reports] == [4, 2, 1]


def test_an_empty_window_takes_another_limit_at_once() -> None:
    window = Window(seconds=3600)
    window.accumulator.limit(WindowLimits(1000, 5.0))
    window.accumulator.record(floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    window.clock.now += 5
    window.accumulator.limit(WindowLimits(1000, 5.0))
    window.accumulator.tick()
    assert [r.rows for r in window.reports] == [1]


def test_an_empty_window_is_not_reported_and_takes_no_number() -> None:
    window = Window(seconds=60)
    window.clock.now += 100
    window.accumulator.tick()
    window.accumulator.flush()
    window.accumulator.record(floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    window.accumulator.flush()
    assert [r.window for r in window.reports] == [1]
    assert window.reports[0].started_unix_ms == 1_100_000


def test_refusals_are_counted_by_reason_and_are_no_rows() -> None:
    window = Window()
    window.accumulator.refuse(MissingValueError("input", expected="", got="", rows=2))
    window.accumulator.refuse(OutOfRangeError("input", expected="", got="", rows=3))
    window.accumulator.refuse(SchemaError("input", expected="", got=""))
    window.accumulator.flush()
    (report,) = window.reports
    assert (report.rows, report.missing, report.out_of_range, report.schema_errors) == (0, 2, 3, 1)
    assert cells(report)["predictions"] == [0, 0]


def test_a_feature_that_is_nan_is_left_out_alone() -> None:
    window = Window()
    window.accumulator.record(floats([[float("nan"), 0.5], [0.5, 0.5]]), floats([[0, 1]] * 2), 1.0)
    window.accumulator.flush()
    counts = cells(window.reports[0])
    assert (counts["a"], counts["b"]) == ([0, 1, 0], [0, 0, 2, 0, 0])
    assert window.reports[0].rows == 2


def test_infinite_features_go_to_the_outer_cells() -> None:
    window = Window()
    window.accumulator.record(floats([[float("inf"), float("-inf")]]), floats([[0, 1]]), 1.0)
    window.accumulator.flush()
    counts = cells(window.reports[0])
    assert (counts["a"], counts["b"]) == ([0, 0, 1], [1, 0, 0, 0, 0])


def test_another_release_goes_on_counting_windows() -> None:
    window = Window()
    window.accumulator.record(floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    second = window.another("release-2")
    second.record(floats([[0.5, 0.5]]), floats([[0, 1]]), 1.0)
    window.accumulator.flush()
    second.flush()
    assert [(r.release_id, r.window, r.rows) for r in window.reports] == [("release-1", 1, 1), ("release-2", 2, 1)]


def test_blocks_count_like_the_contract() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3 * BLOCK_ROWS + 17, 2)).astype(np.float32)
    scores = rng.normal(size=(len(features), 2)).astype(np.float32)
    window = Window(rows=10_000)
    position = 0
    for batch in [1, 64, 3, 64, 64, 64, 63, 1] * 10:
        part = slice(position, position + batch)
        if len(features[part]):
            window.accumulator.record(features[part], scores[part], 5.0)
        position += batch
    window.accumulator.flush()
    (report,) = window.reports
    assert report.rows == len(features)
    for index, feature in enumerate(EDGES.features):
        wanted = count_values(features[:, index].astype(np.float64), np.array(feature.edges))
        assert decode_counts(report.features[index], cells=wanted.size).tolist() == wanted.tolist()
    assert cells(report)["predictions"] == np.bincount(scores.argmax(axis=1)).tolist()


def test_float32_values_meet_float64_edges_exactly() -> None:
    # 0.1 as float32 is above 0.1 as float64, so it lies in the upper cell.
    table = EdgeTable(HistogramEdges(features=[FeatureEdges(name="a", edges=[0.1])]))
    assert table.count(floats([[0.1]])).tolist() == [0, 1]


@pytest.mark.parametrize("rows", [1000, 10_000])
def test_a_report_of_ten_features_is_below_one_kilobyte(rows: int) -> None:
    rng = np.random.default_rng(1)
    reference = {f"feature-{i}": rng.normal(size=5000) for i in range(10)}
    edges = build_edges(
        reference,
        cells=30,
        classes=[f"class-{i}" for i in range(10)],
        confidence_edges=np.linspace(0.05, 0.95, 19).tolist(),
        latency_edges=np.geomspace(10, 1e6, 24).tolist(),
        predictions=np.full(10, 500),
    )
    window = Window(rows=rows, edges=edges)
    for _ in range(rows // 50):
        window.accumulator.record(
            rng.normal(size=(50, 10)).astype(np.float32), rng.normal(size=(50, 10)).astype(np.float32), 300.0
        )
    (report,) = window.reports
    message = UplinkMessage(
        device_id="device-with-a-long-name-0001",
        outbox_id="0123456789abcdef",
        sequence=1 << 40,
        created_unix_ms=1_800_000_000_000,
        drift=report,
    )
    assert message.ByteSize() < 1024
