"""Where this machine keeps what can be made or fetched again, and where prepared data is looked for."""

from __future__ import annotations

import os
from pathlib import Path

#: Overrides where the cache lies.
FOLDER_VARIABLE = "SKERRY_CACHE_DIR"
#: Folder of data that somebody prepared; looked at before the cache.
DATA_VARIABLE = "SKERRY_DATA_DIR"


def cache_folder() -> Path:
    """``$SKERRY_CACHE_DIR``, else ``$XDG_CACHE_HOME/skerry``, else ``~/.cache/skerry``; it may not exist yet."""
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "skerry"


def find_prepared(name: str, tried: list[str]) -> Path | None:
    """A data file in ``$SKERRY_DATA_DIR`` or the cache.

    Args:
        name: Of the file.
        tried: Gets a line for each place where it is not, for people.
    """
    folder = os.environ.get(DATA_VARIABLE, "")
    if not folder:
        tried.append(f"{DATA_VARIABLE} is not set")
    for path in [*([Path(folder) / name] if folder else []), cache_folder() / name]:
        if path.is_file():
            return path
        tried.append(f"{path} does not exist")
    return None
