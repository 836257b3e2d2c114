"""Which ranges a candidate is built with, and when it is built centrally instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from skerry_contract.calibration import TensorRanges, encode_ranges
from skerry_models.bundle import BundleReport
from skerry_models.errors import BundleError
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.releases.candidate_calibration import NOTE, PAYLOAD, build_calibrated

RANGES = TensorRanges(b"g" * 32, b"p" * 32, {"a": (0.0, 1.0)}, rows=40, devices=2)


class Builder:
    """Builds nothing; refuses ranges with ``error``."""

    def __init__(self, error: BundleError | None = None) -> None:
        self.error = error
        self.asked: list[tuple[TensorRanges | None, dict[str, object]]] = []

    def __call__(self, ranges: TensorRanges | None, notes: Mapping[str, object]) -> BundleReport:
        self.asked.append((ranges, dict(notes)))
        if ranges is not None and self.error is not None:
            raise self.error
        return BundleReport(Path("bundle"), "0" * 64, {}, {}, {}, {}, {})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path / 'artifacts'}", local=tmp_path / "artifacts")


def payload(sha256: str = "", reason: str = "") -> dict[str, Any]:
    return {"candidate_id": "c", PAYLOAD: {"source": "devices", "ranges_sha256": sha256, "reason": reason}}


def test_the_ranges_of_the_devices_are_used(store: ArtifactStore) -> None:
    builder = Builder()
    build_calibrated(payload(store.put_bytes(encode_ranges(RANGES))), store, builder)
    assert builder.asked == [(RANGES, {})]


@pytest.mark.parametrize("given", [{"candidate_id": "c"}, {PAYLOAD: None}, {PAYLOAD: {}}])
def test_without_them_it_is_built_centrally_and_says_nothing(store: ArtifactStore, given: dict[str, Any]) -> None:
    builder = Builder()
    build_calibrated(given, store, builder)
    assert builder.asked == [(None, {})]


def test_why_the_devices_were_wanted_and_did_not_tell_is_noted(store: ArtifactStore) -> None:
    builder = Builder()
    build_calibrated(payload(reason="1 of at least 2 devices answered"), store, builder)
    assert builder.asked == [(None, {NOTE: "1 of at least 2 devices answered"})]


def test_ranges_that_are_gone_damaged_or_of_another_network_are_not_used(store: ArtifactStore) -> None:
    good, damaged = store.put_bytes(encode_ranges(RANGES)), store.put_bytes(b"\xff" * 30)
    other = BundleError("calibrate.onnx", "the ranges are of another network or other parameters")
    for sha256, error, reason in (
        ("1" * 64, None, "cannot be read"),
        (damaged, None, "cannot be read"),
        (good, other, "the ranges are of another network"),
    ):
        builder = Builder(error)
        build_calibrated(payload(sha256), store, builder)
        ranges, notes = builder.asked[-1]
        assert ranges is None
        assert reason in str(notes[NOTE])


def test_other_faults_of_the_build_are_not_hidden(store: ArtifactStore) -> None:
    builder = Builder(BundleError("bundle", "the folder is not empty"))
    with pytest.raises(BundleError, match="the folder is not empty"):
        build_calibrated(payload(store.put_bytes(encode_ranges(RANGES))), store, builder)
    assert len(builder.asked) == 1
