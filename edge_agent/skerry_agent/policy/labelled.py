"""How many labelled samples there are, without the store's numpy: control stays small.

The one thing that it knows of :class:`skerry_agent.training.labelled_store.LabelledStore` is its table ``samples``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from dataclasses import dataclass, fields
from pathlib import Path

from skerry_agent.errors import DeviceError

log = logging.getLogger(__name__)
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


@dataclass(frozen=True)
class FreshMark:
    """Which samples an accepted update has seen; see :mod:`skerry_agent.training.fresh`.

    Attributes:
        store_id: Identity of the store that the positions belong to; empty: no update yet.
        position: Newest sample that was trained on.
        before: Likewise, before the answer below.
        campaign_id: Campaign of the newest answer.
        round: Its round.
    """

    store_id: str = ""
    position: int = 0
    before: int = 0
    campaign_id: str = ""
    round: int = 0


def read_mark(path: Path) -> FreshMark:
    """What the file says; an empty mark if there is none that can be used."""
    try:
        document = json.loads(path.read_bytes())
        values = {field.name: document[field.name] for field in fields(FreshMark)}
        for field in fields(FreshMark):
            if type(values[field.name]) is not type(field.default):
                raise ValueError(f"{field.name}: {values[field.name]!r:.40}")
        return FreshMark(**values)
    except FileNotFoundError:
        return FreshMark()
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: %s: every sample counts as fresh", path, error)
        return FreshMark()


def count_fresh(path: Path, mark: FreshMark) -> int:
    """How many of the samples that the store at ``path`` would give to training came after a mark.

    Raises:
        DeviceError: The file is there but cannot be read.
    """
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            made = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE name IN ('samples', 'identity')"
            ).fetchone()[0]
            if made != 2:
                return 0
            identity = connection.execute("SELECT store_id FROM identity").fetchone()
            after = mark.position if identity is not None and identity[0] == mark.store_id else 0
            return int(connection.execute(f"{COUNT_SAMPLES} AND position > ?", (after,)).fetchone()[0])
    except sqlite3.Error as error:
        raise DeviceError(f"labelled samples {path}: {error}", remedy="see the log of serving") from error
