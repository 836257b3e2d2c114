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
#: Samples that can be trained on together: those of the input shape of the newest one.
COUNT_SAMPLES = "SELECT COUNT(*) FROM samples WHERE shape = (SELECT shape FROM samples ORDER BY position DESC LIMIT 1)"


def count_labelled(path: Path) -> int:
    """How many samples the store at ``path`` would give to training; 0 while there is no store.

    Raises:
        DeviceError: The file is there but cannot be read.
    """
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            made = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'samples'").fetchone()[0]
            return int(connection.execute(COUNT_SAMPLES).fetchone()[0]) if made else 0
    except sqlite3.Error as error:
        raise DeviceError(f"labelled samples {path}: {error}", remedy="see the log of serving") from error
