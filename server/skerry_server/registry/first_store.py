"""MLflow's first SQLite store, there as a whole or not at all.

MLflow makes its tables in dozens of migrations which SQLite does not put into one transaction: a process killed among
them leaves a file that MLflow refuses for ever ("table ... already exists"). So the store is made in a file beside,
copied into another and that is renamed to its name; processes that start at once take turns.

Invariants: a file at the store's name is never written here, and never removed: one that a killed process left half
made (by an older version, or by MLflow itself) is set aside under another name. It holds no experiment, and MLflow
keeps nothing without one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from skerry_server.files import exclusively, sync_folder

#: SQLAlchemy URLs of a file; everything else is a server's, whose migrations are transactions.
SCHEME = "sqlite:///"
#: Longest wait for another process that makes the store (seconds); it takes about three.
DEADLINE_S = 120.0


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None for a server and for a database in memory."""
    path = uri.removeprefix(SCHEME).partition("?")[0]
    return Path(path) if uri.startswith(SCHEME) and path not in ("", ":memory:") else None


def make_first(path: Path, make: Callable[[str], object]) -> bool:
    """Have a finished store at ``path``.

    Args:
        path: The SQLite file; its folder is made if absent.
        make: Makes a finished store at the SQLite URI it is given; called only when there is none.

    Returns:
        Whether it was made now.

    Raises:
        PlatformError: Another process has been at it for longer than the deadline.
        OSError, sqlite3.Error: The folder cannot be written. Nothing is at ``path`` that was not there before.
    """
    if is_finished(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusively(path.with_name(f"{path.name}.lock"), deadline_s=DEADLINE_S):
        if is_finished(path):
            return False
        draft, whole = path.with_name(f"{path.name}.draft"), path.with_name(f"{path.name}.whole")
        try:
            _remove(draft, whole)  # of a killed process
            make(f"{SCHEME}{draft}")
            with (
                contextlib.closing(sqlite3.connect(draft)) as source,
                contextlib.closing(sqlite3.connect(whole)) as target,
            ):
                source.backup(target)
            if path.exists():
                path.rename(_unused(path))
            whole.rename(path)
            sync_folder(path.parent)
        finally:
            _remove(draft, whole)
    return True


def is_finished(path: Path) -> bool:
    """Whether the store was made to its end: MLflow's last step is its default experiment.

    A file that is no store of MLflow at all counts as finished too: it is somebody's, and MLflow says what it finds.
    """
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=DEADLINE_S)) as connection:
            names = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in names:
                return bool(names)
            return connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return True


def _unused(path: Path) -> Path:
    """A name for what is set aside."""
    number = 1
    while (aside := path.with_name(f"{path.name}.unfinished-{number}")).exists():
        number += 1
    return aside


def _remove(*paths: Path) -> None:
    for path in paths:
        for suffix in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
