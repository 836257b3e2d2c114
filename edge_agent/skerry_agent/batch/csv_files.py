"""CSV with a header: columns ``input_0``, ``input_1``, ... are the row, every other column travels along as text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

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
from skerry_agent.errors import InputError


class CsvSource:
    """Rows of a CSV file.

    Args:
        path: The file.
        shape: Of a row.

    Raises:
        InputError: Without the input's columns, or no text.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self._path, self._shape = path, shape
        with path.open(newline="") as file:
            try:
                header = next(csv.reader(file), [])
                # Quoted fields may hold line breaks, so rows are not lines.
                self._rows = sum(1 for row in csv.reader(file) if row)
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(path.name, expected="CSV in UTF-8", got=error) from error
        places = {name.strip(): index for index, name in enumerate(header)}
        wanted = [f"{shape.name}_{index}" for index in range(shape.values)]
        missing = next((name for name in wanted if name not in places), None)
        if missing is not None:
            raise InputError(
                path.name, expected=f"columns {wanted[0]} to {wanted[-1]} in the header", got=f"no column {missing}"
            )
        self._inputs = [places[name] for name in wanted]
        self._others = {name: index for name, index in places.items() if name not in set(wanted)}
        self._width = len(header)
        check_columns(path, list(self._others))

    @property
    def rows(self) -> int:
        """See :class:`~skerry_agent.batch.table.Source`."""
        return self._rows

    def blocks(self, rows: int) -> Iterator[Block]:
        """See :class:`~skerry_agent.batch.table.Source`."""
        with self._path.open(newline="") as file:
            reader = csv.reader(file)
            next(reader)
            first, lines = 0, []
            for line in reader:
                if line:
                    lines.append(line)
                if len(lines) == rows:
                    yield self._block(first, lines)
                    first, lines = first + len(lines), []
            if lines:
                yield self._block(first, lines)

    def _block(self, first: int, lines: list[list[str]]) -> Block:
        values = np.empty((len(lines), len(self._inputs)), dtype=np.float64)
        for offset, line in enumerate(lines):
            if len(line) != self._width:
                raise InputError(
                    f"{self._path.name}: row {first + offset}", expected=f"{self._width} fields", got=len(line)
                )
            for place, index in enumerate(self._inputs):
                try:
                    # An empty field is a missing value: the model refuses that row and no other.
                    values[offset, place] = float(line[index]) if line[index].strip() else np.nan
                except ValueError as error:
                    raise InputError(
                        f"{self._path.name}: {self._shape.name}_{place} of row {first + offset}",
                        expected="a number",
                        got=line[index],
                    ) from error
        others = {name: [line[index] for line in lines] for name, index in self._others.items()}
        return Block(first, to_rows(self._path, self._shape, values, first=first), others)

    def close(self) -> None:
        """Nothing is open between calls."""


class CsvSink:
    """Answers as CSV: scores and features are ``scores_0``, ... and ``features_0``, ...

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._pending = PendingFile(path)
        self._file: IO[str] | None = None

    def write(self, scored: Scored) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        new = self._file is None
        if self._file is None:
            self._file = self._pending.temporary.open("w", newline="")
        writer = csv.writer(self._file)
        others = list(scored.block.others)
        if new:
            writer.writerow(
                [
                    *others,
                    LABEL,
                    CONFIDENCE,
                    *(f"{SCORES}_{index}" for index in range(scored.scores.shape[1])),
                    *(f"{FEATURES}_{index}" for index in range(scored.features.shape[1])),
                    VARIANT,
                    ERROR,
                ]
            )
        for row, error in enumerate(scored.errors):
            numbers = [scored.confidences[row], *scored.scores[row], *scored.features[row]]
            writer.writerow(
                [
                    *(scored.block.others[name][row] for name in others),
                    scored.labels[row],
                    *("" if error else f"{number:.9g}" for number in numbers),
                    scored.variants[row],
                    error,
                ]
            )

    def commit(self) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        if self._file is None:
            raise InputError("input", expected="at least one row", got="none")
        self._file.close()
        self._file = None
        self._pending.commit()

    def discard(self) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._pending.discard()
