"""A file that is written beside its place, and becomes visible whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


class PendingFile:
    """The place of a file, and the name under which it is written.

    Args:
        path: Where it will be; what is there stays until :meth:`commit`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def commit(self) -> None:
        """Make what was written, and closed, durable and visible; raises OSError."""
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self._path)

    def discard(self) -> None:
        """Remove what was written; nothing after :meth:`commit`."""
        self.temporary.unlink(missing_ok=True)
