"""Updates of a round on disk, row by row, to be read back column by column: for what needs all of them at once.

Memory is one block of :data:`BLOCK_BYTES`, whatever the number of updates and the size of the model. The file has no
name: it is gone when the spool is closed and also when the process is killed. Rows are read in the order of the device
identifiers, so that a resumed round, whose updates come in another order, gives the same bits.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array
from skerry_server.errors import PlatformError

Block = npt.NDArray[Any]

#: Largest block that is read at a time (bytes); what is computed over it takes about as much again.
BLOCK_BYTES = 12 << 20
#: Elements converted at a time when a tensor's type is not the one of its columns.
_CONVERTED = 1 << 18


@dataclass(frozen=True)
class Segment:
    """Columns of one type: float32 of float16 and float32 tensors, float64 of all others.

    Attributes:
        dtype: Of the columns.
        names: Tensors in it, in the order of the model.
        offset: Of its first byte in a row.
        columns: How many values a row has in it.
    """

    dtype: np.dtype[Any]
    names: tuple[str, ...]
    offset: int
    columns: int


class RowLayout:
    """How a state becomes a row of bytes: its tensors one behind the other, by the type of their columns."""

    def __init__(self, model: Mapping[str, Array]) -> None:
        """``model`` gives names, shapes and types."""
        self._model = {name: (array.shape, array.dtype, array.size) for name, array in model.items()}
        segments: list[Segment] = []
        offset = 0
        for dtype in (np.dtype(np.float64), np.dtype(np.float32)):
            names = tuple(name for name, array in model.items() if _column_type(array.dtype) == dtype)
            columns = sum(model[name].size for name in names)
            segments.append(Segment(dtype, names, offset, columns))
            offset += columns * dtype.itemsize
        self.segments = tuple(segments)
        self.bytes = offset

    def parts(self, state: Mapping[str, Array]) -> Iterator[memoryview]:
        """The bytes of a state's row in pieces; raises ValueError for other names or sizes than the model's."""
        if state.keys() != self._model.keys():
            raise ValueError("the state has other names than the model")
        for segment in self.segments:
            for name in segment.names:
                flat = np.ascontiguousarray(state[name]).reshape(-1)
                if flat.size != self._model[name][2]:
                    raise ValueError(f"{name}: {flat.size} values, the model has {self._model[name][2]}")
                step = max(1, flat.size) if flat.dtype == segment.dtype else _CONVERTED
                for start in range(0, flat.size, step):
                    yield flat[start : start + step].astype(segment.dtype, copy=False).view(np.uint8).data

    def state(self, columns: Sequence[Block]) -> dict[str, Array]:
        """A state from one array of columns for each segment; integers and booleans are rounded."""
        found: dict[str, Array] = {}
        for segment, values in zip(self.segments, columns, strict=True):
            start = 0
            for name in segment.names:
                shape, dtype, size = self._model[name]
                part = values[start : start + size]
                start += size
                found[name] = (np.rint(part) if dtype.kind in "iub" else part).astype(dtype, copy=False).reshape(shape)
        return {name: found[name] for name in self._model}

    def flat(self, state: Mapping[str, Array], segment: Segment, start: int, stop: int) -> Block:
        """Columns ``start`` to ``stop`` of a state's row in a segment, in the type of the segment."""
        out = np.empty(stop - start, segment.dtype)
        first = 0
        for name in segment.names:
            size = self._model[name][2]
            low, high = max(start, first), min(stop, first + size)
            if low < high:
                out[low - start : high - start] = np.ascontiguousarray(state[name]).reshape(-1)[
                    low - first : high - first
                ]
            first += size
        return out


class UpdateSpool:
    """The updates of one round; one thread."""

    def __init__(self, model: Mapping[str, Array], scratch: Path) -> None:
        """Open an empty spool.

        Args:
            model: Names, shapes and types.
            scratch: Existing folder on a disk with room for all updates of the round.

        Raises:
            PlatformError: The folder cannot be written.
        """
        self.layout = RowLayout(model)
        self._keys: list[str] = []
        try:
            self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # close() ends it
        except OSError as error:
            raise _no_room(scratch, error) from error
        self._scratch = scratch

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def order(self) -> list[int]:
        """Numbers (from 0, by arrival) of the updates in the order in which their rows are read."""
        return sorted(range(len(self._keys)), key=lambda number: (self._keys[number], number))

    def add(self, key: str, state: Mapping[str, Array]) -> None:
        """Write a state.

        Args:
            key: Of whom: rows are read in the order of their keys.
            state: Checked; not changed.

        Raises:
            ValueError: Other names or sizes than the model's; nothing is added.
            PlatformError: The disk is full; nothing is added.
        """
        offset = len(self._keys) * self.layout.bytes
        try:
            for part in self.layout.parts(state):
                written = 0
                while written < len(part):
                    written += os.pwrite(self._file.fileno(), part[written:], offset + written)
                offset += len(part)
        except OSError as error:
            raise _no_room(self._scratch, error) from error
        self._keys.append(key)

    def blocks(self, segment: Segment, rows: Sequence[int], *, share: float = 1.0) -> Iterator[tuple[int, Block]]:
        """Read columns of a segment block by block.

        Args:
            segment: Of the layout.
            rows: Numbers of updates, in the order wanted.
            share: Of :data:`BLOCK_BYTES` that a block may take.

        Yields:
            The first column and the values [rows, columns]; overwritten by the next.
        """
        item = segment.dtype.itemsize
        width = max(1, int(BLOCK_BYTES * share) // (item * max(1, len(rows))))
        buffer = np.empty(len(rows) * min(width, segment.columns), segment.dtype)
        for start in range(0, segment.columns, width):
            columns = min(width, segment.columns - start)
            block = buffer[: len(rows) * columns].reshape(len(rows), columns)
            for place, row in enumerate(rows):
                self._read(block[place], row * self.layout.bytes + segment.offset + start * item)
            yield start, block

    def _read(self, values: Block, offset: int) -> None:
        target = values.view(np.uint8).data
        done = 0
        while done < len(target):
            count = os.preadv(self._file.fileno(), [target[done:]], offset + done)
            if count == 0:
                raise EOFError("the spool ends before the update does")
            done += count

    def close(self) -> None:
        """Delete everything; harmless when called again."""
        self._file.close()


def _column_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype in (np.float32, np.float16) else np.dtype(np.float64)


def _no_room(scratch: Path, error: OSError) -> PlatformError:
    return PlatformError(
        f"the updates of a round cannot be kept in {scratch} ({error.strerror})",
        remedy="make room there: a robust strategy needs the size of the model for each device of a round",
    )
