"""A file of rows as the batch door sees it: blocks of inputs, and columns that only travel along.

Invariants: a source is read once, in order, in blocks of bounded size; a sink makes its file visible only in
:meth:`Sink.commit`, whole, and leaves whatever was there before if it never comes to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.backend import Floats
from skerry_agent.errors import InputError

#: Columns that the batch door adds; an input file may not have them.
LABEL, CONFIDENCE, SCORES, FEATURES, VARIANT, ERROR = "label", "confidence", "scores", "features", "variant", "error"
ADDED = (LABEL, CONFIDENCE, SCORES, FEATURES, VARIANT, ERROR)


@dataclass(frozen=True)
class Shape:
    """What one row is.

    Attributes:
        name: The model's input: the column or array with the rows.
        shape: Of one row.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """Consecutive rows.

    Attributes:
        first: Number of the first, from 0.
        x: float32 [rows, ...].
        others: Column to the values that travel along, one a row, in the format's own form.
    """

    first: int
    x: Floats
    others: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """What was found for the rows of a block. A row that was refused has no label, NaN for numbers, and its error.

    Attributes:
        block: The rows.
        labels: Class name of each row; empty if it was refused.
        confidences: float32 [rows].
        scores: float32 [rows, classes].
        features: float32 [rows, F].
        variants: Form of the model that answered.
        errors: Why a row was refused; empty if it was not.
    """

    block: Block
    labels: Sequence[str]
    confidences: Floats
    scores: Floats
    features: Floats
    variants: Sequence[str]
    errors: Sequence[str]


class Source(Protocol):
    """A file of rows."""

    @property
    def rows(self) -> int:
        """How many there are."""
        ...

    def blocks(self, rows: int) -> Iterator[Block]:
        """All rows, at most ``rows`` at a time.

        Raises:
            InputError: A row is not what the model takes; says which.
        """
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


class Sink(Protocol):
    """A file of answers."""

    def write(self, scored: Scored) -> None:
        """Add rows; raises OSError."""
        ...

    def commit(self) -> None:
        """Make the file visible, whole; raises OSError."""
        ...

    def discard(self) -> None:
        """Remove what was written; nothing after :meth:`commit`."""
        ...


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse a file whose columns would be overwritten.

    Raises:
        InputError: It has a column that the batch door adds.
    """
    for name in names:
        if name in ADDED:
            raise InputError(
                f"{path.name}: column {name}", expected="another name: the answers have one of this name", got="it"
            )


def to_rows(path: Path, shape: Shape, values: npt.NDArray[np.generic], *, first: int) -> Floats:
    """Numbers as rows of the model's shape.

    Args:
        path: For errors.
        shape: Of a row.
        values: [rows, ...] of any numeric type and of as many numbers a row as the model takes.
        first: Number of the first row.

    Raises:
        InputError: Another number of values, or no numbers.
    """
    if values.dtype.kind not in "fiub":
        raise InputError(f"{path.name}: {shape.name}", expected="numbers", got=values.dtype)
    given = math.prod(values.shape[1:])
    if given != shape.values or (values.ndim > 2 and values.shape[1:] != shape.shape):
        raise InputError(
            f"{path.name}: {shape.name} from row {first}",
            expected=f"{list(shape.shape)}, which is {shape.values} numbers a row",
            got=f"{list(values.shape[1:])}",
        )
    # A float64 beyond float32 becomes infinite here, and the model refuses that row for being out of range.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.reshape(len(values), *shape.shape), dtype=np.float32)
