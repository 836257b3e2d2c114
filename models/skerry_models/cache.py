"""Where this machine keeps what can be made or fetched again: downloaded data, exported training steps."""

from __future__ import annotations

import os
from pathlib import Path

#: Overrides where the cache lies.
FOLDER_VARIABLE = "SKERRY_CACHE_DIR"


def cache_folder() -> Path:
    """``$SKERRY_CACHE_DIR``, else ``$XDG_CACHE_HOME/skerry``, else ``~/.cache/skerry``; it may not exist yet."""
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "skerry"
