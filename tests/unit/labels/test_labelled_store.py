"""The labelled store: bounds, idempotence, shapes, and the confusion that waits to be reported."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.training.labelled_store import (
    CONFUSION_CLASSES,
    JoinedPrediction,
    LabelledSample,
    LabelledStore,
    PendingLabels,
)
from skerry_contract.limits import MESSAGE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labelled.sqlite"


def row(value: float, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full(shape or (2, 2), value, dtype=np.float32)


def joined(request_id: str, y: int, predicted: int, release: str = "r1") -> LabelledSample:
    return LabelledSample(request_id, 0, row(1), y, JoinedPrediction(release, 3, predicted))


def test_loads_what_was_added_in_order(path: Path) -> None:
    store = LabelledStore(path, 10)
    assert store.add("a", row(1), 2)
    assert store.add("b", row(2), 0)
    assert store.add("a", row(3), 1, row=1)
    x, y = store.load()
    np.testing.assert_array_equal(x, np.stack([row(1), row(2), row(3)]))
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert y.tolist() == [2, 0, 1]
    assert store.count() == 3
    store.close()
    assert LabelledStore(path, 10).count() == 3


def test_empty(path: Path) -> None:
    store = LabelledStore(path, 10)
    x, y = store.load()
    assert (x.shape, y.shape, store.count()) == ((0,), (0,), 0)


def test_the_newest_are_kept(path: Path) -> None:
    store = LabelledStore(path, 3)
    for index in range(5):
        store.add(f"r{index}", row(index), 0)
    assert store.load()[0][:, 0, 0].tolist() == [2, 3, 4]
    assert store.count() == 3
    smaller = LabelledStore(path, 2)
    smaller.add("r5", row(5), 0)
    assert smaller.load()[0][:, 0, 0].tolist() == [4, 5]


def test_the_same_label_twice_changes_nothing_another_label_is_an_error(path: Path) -> None:
    store = LabelledStore(path, 10)
    assert store.add("a", row(1), 2)
    assert not store.add("a", row(1), 2)
    with pytest.raises(InputError, match="labelled before"):
        store.add("a", row(1), 1)
    assert store.load()[1].tolist() == [2]


@pytest.mark.parametrize(
    ("x", "y", "field"),
    [
        (np.zeros(3), 0, "x"),
        ([1.0], 0, "x"),
        (np.zeros(0, dtype=np.float32), 0, "x"),
        (row(float("nan")), 0, "x"),
        (row(float("inf")), 0, "x"),
        (row(1), -1, "label"),
        (row(1), 1024, "label"),
    ],
)
def test_bad_samples(path: Path, x: Any, y: int, field: str) -> None:
    store = LabelledStore(path, 10)
    with pytest.raises(InputError) as caught:
        store.add("a", x, y)
    assert caught.value.field == field
    assert store.count() == 0


def test_samples_of_another_shape_are_never_mixed(path: Path) -> None:
    store = LabelledStore(path, 10)
    store.add("a", row(1, 2, 2), 0)
    store.add("b", row(2, 4), 1)
    store.add("c", row(3, 4), 2)
    x, y = store.load()
    assert (x.shape, y.tolist(), store.count()) == ((2, 4), [1, 2], 2)


def test_one_bad_sample_does_not_hold_up_the_others(path: Path) -> None:
    store = LabelledStore(path, 10)
    outcomes = store.add_many([joined("a", 0, 0), joined("b", 3, 0), joined("a", 0, 0), joined("c", 1, 0)])
    assert outcomes[0] is True
    assert isinstance(outcomes[1], InputError)
    assert outcomes[2:] == [False, True]


def test_confusion_is_pending_until_it_is_sealed_and_sealed_until_it_is_settled(path: Path) -> None:
    store = LabelledStore(path, 2)  # counts outlive their samples
    store.add_many([joined("a", 0, 0), joined("b", 0, 1), joined("c", 2, 2), joined("d", 2, 2), joined("a", 0, 0)])
    store.add_many([joined("e", 1, 0, release="r2")])
    first, second = store.seal()
    report = first.report
    assert (report.release_id, report.classes, report.labelled, report.correct) == ("r1", 3, 4, 3)
    assert list(report.confusion) == [1, 1, 0, 0, 0, 0, 0, 0, 2]
    assert second.report.release_id == "r2"
    assert list(second.report.confusion) == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    store.add_many([joined("f", 2, 2)])  # after the report was sealed
    store.settle(first.number)
    again = LabelledStore(path, 2)
    assert again.store_id == store.store_id
    assert again.pending() == [PendingLabels("r1", 3, {(2, 2): 1})]
    kept, newer = again.seal()
    assert kept == second, "what a report says does not change any more"
    assert (newer.report.release_id, newer.report.labelled) == ("r1", 1)
    for sealed in (kept, newer):
        again.settle(sealed.number)
    assert (again.pending(), again.seal()) == ([], [])
    again.add_many([joined("g", 0, 0)])
    assert again.seal()[0].number > newer.number, "a number is never given twice"


def test_confusion_of_many_classes_does_not_outgrow_a_message() -> None:
    report = PendingLabels("r1", 1024, {(0, 0): 2, (5, 1023): 1}).report()
    assert (report.labelled, report.correct, len(report.confusion)) == (3, 2, 0)
    largest = PendingLabels("r1", CONFUSION_CLASSES, {(i, i): 1 << 30 for i in range(CONFUSION_CLASSES)}).report()
    assert largest.ByteSize() < MESSAGE_BYTES // 2


def test_a_sample_without_a_prediction_is_not_counted(path: Path) -> None:
    store = LabelledStore(path, 10)
    store.add("a", row(1), 0)
    assert store.pending() == []


def test_a_file_that_is_no_database_is_set_aside(path: Path) -> None:
    path.write_bytes(b"this is not a database, and it is longer than a header of SQLite is" * 20)
    store = LabelledStore(path, 10)
    assert store.add("a", row(1), 0)
    (aside,) = path.parent.glob("labelled.sqlite.broken-*")
    assert aside.read_bytes().startswith(b"this is not")


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "labelled.sqlite").mkdir()
    with pytest.raises(DeviceError, match="cannot be used"):
        LabelledStore(tmp_path / "labelled.sqlite", 10)


def test_a_full_disk_keeps_nothing_of_a_batch(path: Path) -> None:
    store = LabelledStore(path, 1000)
    store.add("a", row(1), 0)
    limiter = store._connection
    pages = limiter.execute("PRAGMA page_count").fetchone()[0]
    limiter.execute(f"PRAGMA max_page_count = {pages}")
    big = [LabelledSample(f"b{i}", 0, row(i, 64, 64), 0) for i in range(50)]
    with pytest.raises(DeviceError, match="full"):
        store.add_many(big)
    assert store.load()[1].tolist() == [0]
    limiter.execute("PRAGMA max_page_count = 100000")
    assert store.add_many(big) == [True] * 50


def test_another_process_that_holds_the_lock_too_long_is_an_error_not_a_loss(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_agent.training.labelled_store.BUSY_SECONDS", 0.05)
    store = LabelledStore(path, 10)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DeviceError, match="locked"):
        store.add("a", row(1), 0)
    other.execute("ROLLBACK")
    other.close()
    assert store.add("a", row(1), 0)


def test_capacity_must_be_positive(path: Path) -> None:
    with pytest.raises(ValueError, match="capacity"):
        LabelledStore(path, 0)
