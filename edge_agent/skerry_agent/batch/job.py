"""One run of the batch door: opens the release of this device, the files, and tells how it goes.

The engine is this process's own, its thread at a low priority: the device's answers are not slowed. Rows of a file are
not counted as traffic, so they raise no drift.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from skerry_agent.batch.csv_files import CsvSink, CsvSource
from skerry_agent.batch.numpy_files import NumpySink, NumpySource
from skerry_agent.batch.parquet_files import ParquetSink, ParquetSource
from skerry_agent.batch.scoring import Summary, score
from skerry_agent.batch.table import Shape, Sink, Source
from skerry_agent.config import AgentLayout
from skerry_agent.engine.backend import Floats
from skerry_agent.engine.engine import Engine
from skerry_agent.engine.errors import NoReleaseError
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import DeviceError, InputError
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

SOURCES: dict[str, Callable[[Path, Shape], Source]] = {
    ".npy": NumpySource,
    ".npz": NumpySource,
    ".csv": CsvSource,
    ".parquet": ParquetSource,
}
SINKS: dict[str, Callable[[Path], Sink]] = {".npz": NumpySink, ".csv": CsvSink, ".parquet": ParquetSink}
T = TypeVar("T")

#: Steps of niceness below the processes that answer.
NICENESS = 10


class _StoppedError(Exception):
    """Whoever asked for the run does not wait for it any more."""


class _Patient:
    """The engine without its deadline: a block of rows may take as long as it takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def infer(self, x: Floats) -> Prediction:
        """See :class:`~skerry_agent.batch.scoring.Answers`."""
        return self._engine.infer(x, deadline_us=math.inf)


class _NoReports:
    """Takes the place of the outbox: a file is no traffic."""

    def enqueue(self, message: UplinkMessage) -> int:
        """Forget a report."""
        return 0


def run_batch(
    layout: AgentLayout,
    source_path: Path,
    sink_path: Path,
    *,
    keep_bad: bool,
    on_rows: Callable[[int, int], None] = lambda done, rows: None,
) -> dict[str, Any]:
    """Score a file with the active release.

    Args:
        layout: The device's data.
        source_path: .npy, .npz, .csv or .parquet.
        sink_path: .npz, .csv or .parquet; replaced when the run has come to its end, untouched otherwise.
        keep_bad: See :func:`~skerry_agent.batch.scoring.score`.
        on_rows: Hears rows done and rows in all.

    Returns:
        The summary, with "seconds" and "rows_per_second".

    Raises:
        InputError: An unknown kind of file, or rows that the model does not take.
        NoReleaseError: The device has no release.
        DeviceError: Not enrolled, a file that cannot be read or written, or a library that is missing.
    """
    make_source = _of(SOURCES, source_path, "--input")
    make_sink = _of(SINKS, sink_path, "--output")
    if not sink_path.absolute().parent.is_dir():
        raise InputError("--output", expected="a file in a folder that is there", got=sink_path)
    if sink_path.exists() and source_path.exists() and sink_path.samefile(source_path):
        raise InputError("--output", expected="another file than --input", got=sink_path)
    started = time.monotonic()
    stop = threading.Event()

    def scored() -> tuple[Summary, str]:
        return _score(layout, source_path, sink_path, make_source, make_sink, keep_bad=keep_bad, on_rows=go_on)

    def go_on(done: int, rows: int) -> None:
        if stop.is_set():
            raise _StoppedError
        on_rows(done, rows)

    # A thread can be lowered alone, and what runs it can still be interrupted.
    with ThreadPoolExecutor(1, thread_name_prefix="score", initializer=_lower_this_thread) as pool:
        try:
            summary, task = pool.submit(scored).result()
        except BaseException:
            stop.set()
            raise
    seconds = time.monotonic() - started
    return {
        **asdict(summary),
        "task": task,
        "seconds": round(seconds, 3),
        "rows_per_second": round(summary.rows / seconds, 1),
        "output": str(sink_path),
    }


def _score(
    layout: AgentLayout,
    source_path: Path,
    sink_path: Path,
    make_source: Callable[[Path, Shape], Source],
    make_sink: Callable[[Path], Sink],
    *,
    keep_bad: bool,
    on_rows: Callable[[int, int], None],
) -> tuple[Summary, str]:
    """The summary and the task of the release that answered."""
    with Engine.open(layout.root, follow=False, open_sink=_NoReports) as engine:
        spec = engine.spec
        if spec is None:
            raise NoReleaseError(engine.status().detail)
        try:
            with contextlib.closing(make_source(source_path, Shape(spec.input.name, spec.input.shape))) as source:
                rows = source.rows
                summary = score(
                    source,
                    _Patient(engine),
                    make_sink(sink_path),
                    widths=(spec.scores.shape[0], spec.features.shape[0]),
                    block_rows=spec.maximum_batch,
                    keep_bad=keep_bad,
                    on_rows=lambda done: on_rows(done, rows),
                )
        except OSError as error:
            raise DeviceError(
                f"{error.filename or source_path}: {error.strerror or error}",
                remedy="check the path and the free space",
            ) from error
    return summary, spec.task


def _lower_this_thread() -> None:
    with contextlib.suppress(OSError):
        os.nice(NICENESS)


def _of(kinds: dict[str, T], path: Path, field: str) -> T:
    try:
        return kinds[path.suffix.lower()]
    except KeyError:
        raise InputError(field, expected=f"a file ending in {', '.join(kinds)}", got=path.name) from None
