from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.calibration import (
    LARGEST_COUNT,
    TensorRanges,
    decode_ranges,
    encode_ranges,
    merge_ranges,
    ranges_from_outputs,
    within,
)
from skerry_contract.errors import WireError
from skerry_contract.v1.calibration_pb2 import ActivationRange, ActivationRanges

GRAPH, PARAMETERS = b"g" * 32, b"p" * 32
FLOATS = st.floats(-1e6, 1e6, width=32)


def some(low: float, high: float, rows: int = 1, devices: int = 1) -> TensorRanges:
    return TensorRanges(GRAPH, PARAMETERS, {"a": (low, high), "b": (-1.0, 1.0)}, rows, devices)


@st.composite
def parts(draw: st.DrawFn) -> TensorRanges:
    low, high = sorted((draw(FLOATS), draw(FLOATS)))
    return some(low, high, draw(st.integers(1, LARGEST_COUNT)), draw(st.integers(1, 100)))


def test_merging_by_hand() -> None:
    merged = some(-2, 3, rows=10).merge(some(-1, 5, rows=4))
    assert merged.ranges == {"a": (-2, 5), "b": (-1, 1)}
    assert (merged.rows, merged.devices) == (14, 2)


@given(st.lists(parts(), min_size=3, max_size=3))
def test_order_does_not_matter_and_counts_stay_bounded(three: list[TensorRanges]) -> None:
    a, b, c = three
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    results = [merge_ranges(order) for order in permutations(three)]
    assert all(result == results[0] for result in results)
    assert results[0].rows == min(a.rows + b.rows + c.rows, LARGEST_COUNT)
    assert decode_ranges(encode_ranges(results[0])) == results[0]


def test_other_networks_do_not_merge() -> None:
    ours = some(0, 1)
    for other in (
        TensorRanges(b"h" * 32, PARAMETERS, ours.ranges, 1),
        TensorRanges(GRAPH, b"q" * 32, ours.ranges, 1),
        TensorRanges(GRAPH, PARAMETERS, {"a": (0.0, 1.0)}, 1),
    ):
        with pytest.raises(WireError):
            ours.merge(other)
    with pytest.raises(ValueError, match="nothing"):
        merge_ranges([])


def message(**change: object) -> bytes:
    fields: dict[str, object] = {
        "graph_sha256": GRAPH,
        "parameters_sha256": PARAMETERS,
        "rows": 3,
        "devices": 1,
        "tensors": [ActivationRange(name="a", minimum=-1, maximum=2)],
    }
    data: bytes = ActivationRanges(**{**fields, **change}).SerializeToString()  # type: ignore[arg-type]
    return data


def tensor(name: str, low: float, high: float) -> ActivationRange:
    return ActivationRange(name=name, minimum=low, maximum=high)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"graph_sha256": b"short"}, "graph_sha256"),
        ({"parameters_sha256": b""}, "parameters_sha256"),
        ({"rows": 0}, "rows"),
        ({"rows": LARGEST_COUNT + 1}, "rows"),
        ({"devices": 0}, "devices"),
        ({"tensors": []}, "tensors"),
        ({"tensors": [tensor("b", 0, 1), tensor("a", 0, 1)]}, "tensors"),
        ({"tensors": [tensor("a", 0, 1), tensor("a", 0, 1)]}, "tensors"),
        ({"tensors": [tensor("", 0, 1)]}, "name"),
        ({"tensors": [tensor("x" * 201, 0, 1)]}, "name"),
        ({"tensors": [tensor("a", 1, 0)]}, "a"),
        ({"tensors": [tensor("a", float("nan"), 0)]}, "a"),
        ({"tensors": [tensor("a", 0, float("inf"))]}, "a"),
        ({"tensors": [tensor("a", 0, 2e12)]}, "a"),
        ({"tensors": [tensor(f"{n:04d}", 0, 1) for n in range(4097)]}, "tensors"),
    ],
)
def test_broken_ranges_are_refused_by_field(change: dict[str, object], field: str) -> None:
    assert decode_ranges(message()).ranges == {"a": (-1, 2)}
    with pytest.raises(WireError) as caught:
        decode_ranges(message(**change))
    assert field in caught.value.field


def test_outputs_of_a_run() -> None:
    outputs = {
        "minimum/b": np.array(-1.0),
        "maximum/b": np.array(2.0),
        "minimum/a": np.array(0.0),
        "maximum/a": np.array(4.0),
    }
    got = ranges_from_outputs(outputs, rows=7, graph_sha256=GRAPH, parameters_sha256=PARAMETERS)
    assert (list(got.ranges.items()), got.rows, got.devices) == ([("a", (0.0, 4.0)), ("b", (-1.0, 2.0))], 7, 1)
    for change in ({name: np.array(1.0)} for name in ("scores", "minimum/c", "maximum/c")):
        with pytest.raises(WireError, match="minimum and a maximum"):
            ranges_from_outputs({**outputs, **change}, rows=7, graph_sha256=GRAPH, parameters_sha256=PARAMETERS)
    with pytest.raises(WireError, match="finite"):
        ranges_from_outputs(
            {**outputs, "maximum/a": np.array(np.nan)}, rows=1, graph_sha256=GRAPH, parameters_sha256=PARAMETERS
        )


def test_one_device_cannot_stretch_the_range_of_all() -> None:
    trusted = some(-2, 3)
    assert within(some(-6, 5), trusted, factor=2) == ""
    assert within(some(-6.1, 5), trusted, factor=2) == "a"
    assert within(some(0, 1e9), trusted, factor=100) == "a"
    with pytest.raises(ValueError, match="at least 1"):
        within(trusted, trusted, factor=0.5)
