"""Parquet: the only file that imports pyarrow, which is no part of an agent (``pip install 'skerry[score]'``).

The rows are one column named as the model's input, a list or fixed-size list of numbers in C order, or as many
numeric columns ``input_0``, ``input_1``, ... Every other column travels along unchanged.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_agent.batch.pending_file import PendingFile
from skerry_agent.batch.table import (
    CONFIDENCE,
    ERROR,
    FEATURES,
    LABEL,
    SCORES,
    VARIANT,
    Block,
    Scored,
    Shape,
    check_columns,
    to_rows,
)
from skerry_agent.errors import DeviceError, InputError


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DeviceError(
            "Parquet files need pyarrow, which is not installed", remedy="pip install 'skerry[score]', or use .npz"
        ) from error


class ParquetSource:
    """Rows of a Parquet file, read a block at a time.

    Args:
        path: The file.
        shape: Of a row.

    Raises:
        InputError: Not a Parquet file, or without the input.
        DeviceError: pyarrow is not installed.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self._path, self._shape = path, shape
        self._arrow: Any = _library("pyarrow")
        parquet: Any = _library("pyarrow.parquet")
        try:
            self._file: Any = parquet.ParquetFile(path)
        except self._arrow.ArrowInvalid as error:
            raise InputError(path.name, expected="a Parquet file", got=error) from error
        names = [str(name) for name in self._file.schema_arrow.names]
        flat = [f"{shape.name}_{index}" for index in range(shape.values)]
        self._inputs = [shape.name] if shape.name in names else flat
        missing = next((name for name in self._inputs if name not in names), None)
        if missing is not None:
            self.close()
            raise InputError(
                path.name,
                expected=f"a column {shape.name} of lists, or {shape.values} columns {flat[0]} to {flat[-1]}",
                got=f"no column {missing}",
            )
        self._others = [name for name in names if name not in self._inputs]
        check_columns(path, self._others)

    @property
    def rows(self) -> int:
        """See :class:`~skerry_agent.batch.table.Source`."""
        return int(self._file.metadata.num_rows)

    def blocks(self, rows: int) -> Iterator[Block]:
        """See :class:`~skerry_agent.batch.table.Source`."""
        first = 0
        for batch in self._file.iter_batches(batch_size=rows):
            values = self._values(batch, first)
            x = to_rows(self._path, self._shape, values, first=first)
            yield Block(first, x, {name: batch.column(name) for name in self._others})
            first += len(x)

    def _values(self, batch: Any, first: int) -> npt.NDArray[np.generic]:
        columns = [batch.column(name) for name in self._inputs]
        for name, column in zip(self._inputs, columns, strict=True):
            if column.null_count:
                row = first + next(index for index, value in enumerate(column) if not value.is_valid)
                raise InputError(f"{self._path.name}: {name} of row {row}", expected="a value", got="null")
        try:
            if len(columns) > 1 or self._inputs[0] != self._shape.name:
                return np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
            column = columns[0]
            lengths = self._arrow.compute.list_value_length(column).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != self._shape.values)
            if len(wrong):
                raise InputError(
                    f"{self._path.name}: {self._shape.name} of row {first + int(wrong[0])}",
                    expected=f"{self._shape.values} numbers",
                    got=int(lengths[wrong[0]]),
                )
            flat = column.flatten()
            if flat.null_count:
                # A missing number is NaN: the model refuses that row and no other.
                flat = flat.cast(self._arrow.float64())
            numbers: npt.NDArray[np.generic] = flat.to_numpy(zero_copy_only=False)
            return numbers.reshape(len(column), self._shape.values)
        except (self._arrow.ArrowInvalid, self._arrow.ArrowNotImplementedError, AttributeError) as error:
            raise InputError(
                f"{self._path.name}: {self._shape.name}", expected="lists of numbers", got=columns[0].type
            ) from error

    def close(self) -> None:
        """See :class:`~skerry_agent.batch.table.Source`."""
        self._file.close()


class ParquetSink:
    """Answers as a Parquet file, written a block at a time.

    Args:
        path: The file.

    Raises:
        DeviceError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._pending = PendingFile(path)
        self._arrow: Any = _library("pyarrow")
        self._parquet: Any = _library("pyarrow.parquet")
        self._writer: Any = None

    def write(self, scored: Scored) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        arrow = self._arrow
        refused = np.array([bool(error) for error in scored.errors])
        columns = {
            **dict(scored.block.others),
            LABEL: arrow.array([label or None for label in scored.labels], arrow.string()),
            CONFIDENCE: arrow.array(scored.confidences, arrow.float32(), mask=refused),
            SCORES: self._lists(scored.scores, refused),
            FEATURES: self._lists(scored.features, refused),
            VARIANT: arrow.array([variant or None for variant in scored.variants], arrow.string()),
            ERROR: arrow.array([error or None for error in scored.errors], arrow.string()),
        }
        batch = arrow.record_batch(
            [arrow.array(v) if not hasattr(v, "type") else v for v in columns.values()], names=list(columns)
        )
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._pending.temporary, batch.schema)
        self._writer.write_batch(batch)

    def _lists(self, values: npt.NDArray[np.float32], refused: npt.NDArray[np.bool_]) -> Any:
        arrow = self._arrow
        rows = [None if gone else row for gone, row in zip(refused, values, strict=True)]
        return arrow.array(rows, arrow.list_(arrow.float32()))

    def commit(self) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        if self._writer is None:
            raise InputError("input", expected="at least one row", got="none")
        self._writer.close()
        self._writer = None
        self._pending.commit()

    def discard(self) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._pending.discard()
