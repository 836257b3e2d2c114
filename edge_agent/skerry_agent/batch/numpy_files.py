"""``.npy`` (an array of rows) and ``.npz`` (one array of rows, and others of the same length that travel along)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
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
from skerry_agent.errors import InputError

Array = npt.NDArray[np.generic]


class NumpySource:
    """Rows of an array; ``.npy`` is mapped, so that a file larger than the memory is read as it is needed.

    Args:
        path: File ending in .npy or .npz.
        shape: Of a row; names the array in an .npz.

    Raises:
        InputError: Not such a file, without that array, or with arrays of other lengths.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self._path, self._shape = path, shape
        self._others: dict[str, Array] = {}
        try:
            loaded: Any = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                self._x: Array = loaded
            else:
                with loaded:
                    self._x = self._read(loaded)
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(path.name, expected="a NumPy file without pickles", got=error) from error
        if self._x.ndim < 2:
            raise InputError(f"{path.name}: {shape.name}", expected="[rows, ...]", got=list(self._x.shape))

    def _read(self, archive: Any) -> Array:
        names = list(archive.files)
        if self._shape.name not in names:
            raise InputError(self._path.name, expected=f"an array {self._shape.name}", got=", ".join(names)[:100])
        x: Array = archive[self._shape.name]
        for name in names:
            if name != self._shape.name:
                other: Array = archive[name]
                if other.ndim != 1 or len(other) != len(x):
                    raise InputError(
                        f"{self._path.name}: {name}", expected=f"one value for each of {len(x)} rows", got=other.shape
                    )
                self._others[name] = other
        check_columns(self._path, list(self._others))
        return x

    @property
    def rows(self) -> int:
        """See :class:`~skerry_agent.batch.table.Source`."""
        return len(self._x)

    def blocks(self, rows: int) -> Iterator[Block]:
        """See :class:`~skerry_agent.batch.table.Source`."""
        for first in range(0, self.rows, rows):
            x = to_rows(self._path, self._shape, self._x[first : first + rows], first=first)
            yield Block(first, x, {name: array[first : first + rows] for name, array in self._others.items()})

    def close(self) -> None:
        """The mapping ends with the array."""


class NumpySink:
    """Answers as an ``.npz``: one array a column. They are kept in memory until the end, about 100 bytes a row.

    Args:
        path: File ending in .npz.
    """

    def __init__(self, path: Path) -> None:
        self._file = PendingFile(path)
        self._parts: list[Scored] = []

    def write(self, scored: Scored) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        # Without the rows: they are most of the bytes, and a view of them would keep them.
        self._parts.append(replace(scored, block=replace(scored.block, x=np.zeros(0, np.float32))))

    def commit(self) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        parts = self._parts
        columns: dict[str, Array] = {
            name: _plain(np.concatenate([np.asarray(part.block.others[name]) for part in parts]))
            for name in (parts[0].block.others if parts else ())
        }
        for name, texts in ((LABEL, "labels"), (VARIANT, "variants"), (ERROR, "errors")):
            columns[name] = np.array([text for part in parts for text in getattr(part, texts)], dtype=np.str_)
        for name, numbers in ((CONFIDENCE, "confidences"), (SCORES, "scores"), (FEATURES, "features")):
            columns[name] = np.concatenate([getattr(part, numbers) for part in parts] or [np.zeros(0, np.float32)])
        with self._file.temporary.open("wb") as file:
            np.savez_compressed(file, **columns)  # type: ignore[arg-type]  # its keywords are arrays
        self._file.commit()

    def discard(self) -> None:
        """See :class:`~skerry_agent.batch.table.Sink`."""
        self._parts.clear()
        self._file.discard()


def _plain(values: Array) -> Array:
    """Values that need no pickle: what is no number (text or null out of another format) becomes text."""
    return values if values.dtype != object else np.array(["" if value is None else str(value) for value in values])
