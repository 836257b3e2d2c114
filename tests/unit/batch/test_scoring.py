"""The batch door without a device: every format, bad rows, and files that are not what they say."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skerry_agent.batch.csv_files import CsvSink, CsvSource
from skerry_agent.batch.job import SINKS, SOURCES
from skerry_agent.batch.numpy_files import NumpySink, NumpySource
from skerry_agent.batch.parquet_files import ParquetSink, ParquetSource
from skerry_agent.batch.scoring import BadRowError, Summary, score
from skerry_agent.batch.table import Scored, Shape, Sink, Source
from skerry_agent.engine.backend import Floats
from skerry_agent.engine.errors import BackendError, MissingValueError
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import InputError

SHAPE = Shape("input", (2, 3))
CLASSES = ("even", "odd")


class Parity:
    """Says whether the sum of a row is odd; refuses NaN; counts how it was asked."""

    def __init__(self, fail_at: int = -1) -> None:
        self.asked: list[int] = []
        self.fail_at = fail_at

    def infer(self, x: Floats) -> Prediction:
        self.asked.append(len(x))
        if len(self.asked) - 1 == self.fail_at:
            raise BackendError("parity", "run", "it broke")
        if np.isnan(x).any():
            raise MissingValueError("input", expected="no NaN", got="NaN", rows=1)
        sums = x.reshape(len(x), -1).sum(axis=1)
        odd = sums.astype(np.int64) % 2 == 1
        scores = np.stack([np.where(odd, 0.0, 2.0), np.where(odd, 2.0, 0.0)], axis=1).astype(np.float32)
        return Prediction(scores, sums[:, None].astype(np.float32), CLASSES, "release-one", "", 1.0, "fp32")


def rows(count: int, bad: tuple[int, ...] = ()) -> Floats:
    """Row i holds i and zeros, so its parity is that of i."""
    x = np.zeros((count, 2, 3), dtype=np.float32)
    x[:, 0, 0] = np.arange(count)
    for row in bad:
        x[row, 1, 2] = np.nan
    return x


def write_npy(path: Path, x: Floats) -> None:
    np.save(path, x)


def write_npz(path: Path, x: Floats) -> None:
    np.savez(path, input=x, name=np.array([f"row {i}" for i in range(len(x))]))


def write_csv(path: Path, x: Floats) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *(f"input_{i}" for i in range(6))])
        for index, row in enumerate(x.reshape(len(x), 6)):
            writer.writerow([f"row {index}", *("" if np.isnan(value) else value for value in row)])


def write_parquet(path: Path, x: Floats) -> None:
    lists = [[None if np.isnan(value) else value for value in row] for row in x.reshape(len(x), 6).tolist()]
    pq.write_table(pa.table({"name": [f"row {i}" for i in range(len(x))], "input": lists}), path)


def write_wide_parquet(path: Path, x: Floats) -> None:
    flat = x.reshape(len(x), 6)
    pq.write_table(
        pa.table({"name": [f"row {i}" for i in range(len(x))], **{f"input_{i}": flat[:, i] for i in range(6)}}), path
    )


WRITERS: dict[str, tuple[str, Callable[[Path, Floats], None]]] = {
    "npy": (".npy", write_npy),
    "npz": (".npz", write_npz),
    "csv": (".csv", write_csv),
    "parquet": (".parquet", write_parquet),
    "wide parquet": (".parquet", write_wide_parquet),
}


def read(path: Path) -> dict[str, list[object]]:
    """Name, label and error of every row of an output; missing is ""."""
    if path.suffix == ".parquet":
        table = pq.read_table(path).to_pydict()
        return {name: [value or "" for value in table.get(name, [])] for name in ("name", "label", "error")}
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name].tolist() if name in archive else [] for name in ("name", "label", "error")}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [line[name] for line in lines if name in line] for name in ("name", "label", "error")}


def run(source: Source, sink: Sink, answers: Parity, *, block_rows: int = 4, keep_bad: bool = True) -> Summary:
    return score(source, answers, sink, widths=(2, 1), block_rows=block_rows, keep_bad=keep_bad)


@pytest.mark.parametrize("made", WRITERS)
@pytest.mark.parametrize("suffix", SINKS)
def test_every_format_gives_every_format(tmp_path: Path, made: str, suffix: str) -> None:
    ending, write = WRITERS[made]
    path, output = tmp_path / f"in{ending}", tmp_path / f"out{suffix}"
    write(path, rows(10, bad=(5,)))
    answers = Parity()
    summary = run(SOURCES[ending](path, SHAPE), SINKS[suffix](output), answers)
    assert (summary.rows, summary.refused, summary.labels) == (10, 1, {"even": 5, "odd": 4})
    assert summary.first_error.startswith("row 5: input")
    assert answers.asked == [4, 4, 1, 1, 1, 1, 2]  # only the block with the bad row is asked row by row
    found = read(output)
    assert found["label"] == ["even", "odd", "even", "odd", "even", "", "even", "odd", "even", "odd"]
    assert [bool(error) for error in found["error"]] == [row == 5 for row in range(10)]
    assert found["name"] == ([f"row {i}" for i in range(10)] if ending != ".npy" else [])
    assert [file.name for file in tmp_path.iterdir() if file not in (path, output)] == []


def test_a_block_of_bad_rows_alone_keeps_the_columns(tmp_path: Path) -> None:
    for suffix, make in SINKS.items():
        np.save(tmp_path / "in.npy", rows(4, bad=(0, 1)))
        run(NumpySource(tmp_path / "in.npy", SHAPE), make(tmp_path / f"out{suffix}"), Parity(), block_rows=2)
        assert read(tmp_path / f"out{suffix}")["label"] == ["", "", "even", "odd"]


@pytest.mark.parametrize("suffix", SINKS)
@pytest.mark.parametrize("trouble", ["bad row", "model", "disk"])
def test_a_run_that_ends_early_leaves_what_was_there(tmp_path: Path, suffix: str, trouble: str) -> None:
    output = tmp_path / f"out{suffix}"
    output.write_bytes(b"of yesterday")
    np.save(tmp_path / "in.npy", rows(10, bad=(7,) if trouble == "bad row" else ()))

    class Full:
        """A sink whose disk is full at the second block."""

        def __init__(self, inner: Sink) -> None:
            self.inner, self.written = inner, 0

        def write(self, scored: Scored) -> None:
            self.written += 1
            if trouble == "disk" and self.written == 2:
                raise OSError(28, "No space left on device")
            self.inner.write(scored)

        def commit(self) -> None:
            self.inner.commit()

        def discard(self) -> None:
            self.inner.discard()

    expected = {"bad row": BadRowError, "model": BackendError, "disk": OSError}[trouble]
    with pytest.raises(expected) as wrong:
        run(
            NumpySource(tmp_path / "in.npy", SHAPE),
            Full(SINKS[suffix](output)),
            Parity(fail_at=1 if trouble == "model" else -1),
            keep_bad=False,
        )
    if trouble == "bad row":
        assert "row 7" in str(wrong.value)
    assert output.read_bytes() == b"of yesterday"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.npy", output.name]


def _pickled(path: Path) -> None:
    np.savez(path, input=np.array([{"a": 1}], dtype=object))


def _table(**columns: object) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("a.npz", lambda p: p.write_bytes(b"no archive"), "NumPy file"),
        ("b.npz", _pickled, "without pickles"),
        ("c.npz", lambda p: np.savez(p, other=np.zeros(3)), "an array input"),
        ("d.npz", lambda p: np.savez(p, input=np.zeros((3, 6)), id=np.zeros(2)), "3 rows"),
        ("e.npz", lambda p: np.savez(p, input=np.zeros((3, 6)), label=np.zeros(3)), "another name"),
        ("f.npy", lambda p: np.save(p, np.zeros((3, 3, 2))), "2, 3"),
        ("g.npy", lambda p: np.save(p, np.array([["a"] * 6])), "numbers"),
        ("h.npy", lambda p: np.save(p, np.zeros(6)), "rows"),
        ("i.csv", lambda p: p.write_text("input_0,input_1\n1,2\n"), "no column input_2"),
        ("j.csv", lambda p: p.write_text("input_0,input_1,input_2,input_3,input_4,input_5\n1,2,3,4,5\n"), "6 fields"),
        ("k.csv", lambda p: p.write_text("input_0,input_1,input_2,input_3,input_4,input_5\n1,2,3,4,5,x\n"), "a number"),
        ("l.csv", lambda p: p.write_bytes(b"\xff\xfe\x00"), "UTF-8"),
        ("m.parquet", lambda p: p.write_bytes(b"PAR1"), "a Parquet file"),
        ("n.parquet", _table(input=[[1.0] * 5]), "6 numbers"),
        ("o.parquet", _table(input=[[1.0] * 6, None]), "a value"),
        ("p.parquet", _table(input=["text"]), "lists of numbers"),
        ("q.parquet", _table(inputs=[[1.0] * 6]), "no column input_0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, make: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError) as wrong:
        run(SOURCES[path.suffix](path, SHAPE), CsvSink(tmp_path / "out.csv"), Parity())
    assert said in str(wrong.value)
    assert name in wrong.value.field
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_empty_file_of_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", rows(0))
    for make in (CsvSink, ParquetSink):
        with pytest.raises(InputError, match="at least one row"):
            run(NumpySource(tmp_path / "in.npy", SHAPE), make(tmp_path / "out"), Parity())
    run(NumpySource(tmp_path / "in.npy", SHAPE), NumpySink(tmp_path / "out.npz"), Parity())
    assert read(tmp_path / "out.npz")["label"] == []


def test_quoted_line_breaks_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('note,input_0,input_1,input_2,input_3,input_4,input_5\n"two\nlines",1,0,0,0,0,0\n\n')
    source = CsvSource(path, SHAPE)
    assert source.rows == 1
    assert [block.others["note"] for block in source.blocks(5)] == [["two\nlines"]]


def test_wide_integers_and_doubles_become_float32(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input": [[1, 2, 3, 4, 5, 6]]}), tmp_path / "in.parquet")
    block = next(iter(ParquetSource(tmp_path / "in.parquet", SHAPE).blocks(2)))
    assert block.x.dtype == np.float32
    assert block.x.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    np.save(tmp_path / "in.npy", np.full((1, 6), 1e300))
    assert np.isinf(next(iter(NumpySource(tmp_path / "in.npy", SHAPE).blocks(2))).x).all()
