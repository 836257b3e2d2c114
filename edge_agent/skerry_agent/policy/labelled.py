"""How many labelled samples there are, without the store's numpy: control stays small.

The one thing that it knows of :class:`skerry_agent.training.labelled_store.LabelledStore` is its table ``samples``.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from skerry_agent.errors import DeviceError

#: How long the writing process may hold the file (seconds).
BUSY_S = 2.0


def count_labelled(path: Path) -> int:
    """Samples in the store at ``path``; 0 while there is none.

    Raises:
        DeviceError: The file is there but cannot be read.
    """
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            made = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'samples'").fetchone()[0]
            return int(connection.execute("SELECT count(*) FROM samples").fetchone()[0]) if made else 0
    except sqlite3.Error as error:
        raise DeviceError(f"labelled samples {path}: {error}", remedy="see the log of serving") from error
