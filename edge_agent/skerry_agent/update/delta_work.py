"""One file that is to be made by its delta: what control and the process that makes it both know, without NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Exit statuses of :mod:`.apply_delta`.
MADE, MACHINE, USAGE, REFUSED = 0, 1, 2, 3


@dataclass(frozen=True)
class DeltaWork:
    """What is made, and out of what.

    Attributes:
        delta: The delta, complete.
        base: The file that it applies to.
        temporary: Where the file is written; whoever asked for it renames it, or removes what there is of it.
        sha256: Digest that the file must have.
        size: Size that it must have (bytes).
    """

    delta: Path
    base: Path
    temporary: Path
    sha256: bytes
    size: int


class DeltaError(Exception):
    """A delta that does not lead to its file.

    Attributes:
        reason: Why not, for people.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
