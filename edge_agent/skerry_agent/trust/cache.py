"""Keeps ngclient's cache readable: it reads whole files and stumbles over what is not one.

Losing the cache costs a download; what must not be lost is in the floors.
"""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

from skerry_agent.files import DISK, Disk
from skerry_agent.trust.places import TrustPlaces
from skerry_contract.limits import TRUST_FILE_BYTES

log = logging.getLogger(__name__)
HISTORY = "root_history"
_LINK = "root.json"


def set_damaged_aside(places: TrustPlaces, disk: Disk = DISK) -> list[str]:
    """Move what ngclient cannot have written, or what a power cut made of it, to ``damaged``.

    A file that can be read but does not verify is left: ngclient fetches it again.

    Returns:
        Names of the files that were moved.

    Raises:
        OSError: The disk failed.
    """
    folder = places.metadata
    moved: list[str] = []
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        moved.append(_move(folder, places, disk))
    disk.make_folder(folder)
    history = folder / HISTORY
    if history.is_symlink() or (history.exists() and not history.is_dir()):
        moved.append(_move(history, places, disk))
    for path in sorted(folder.iterdir()):
        if path == history or (path.name == _LINK and path.is_symlink()):
            continue
        if path.name.startswith("tmp"):
            # A temporary file of ngclient that a power cut left.
            disk.remove_tree(path) if path.is_dir() else disk.unlink(path)
        elif path.name == _LINK or not _readable(path):
            moved.append(_move(path, places, disk))
    if history.is_dir():
        moved += [_move(path, places, disk) for path in sorted(history.iterdir()) if not _readable(path)]
    if moved:
        log.error("trust: damaged files set aside: %s", ", ".join(moved))
    return moved


def _readable(path: Path) -> bool:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= TRUST_FILE_BYTES:
        return False
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "signed" in document and "signatures" in document


def _move(path: Path, places: TrustPlaces, disk: Disk) -> str:
    disk.make_folder(places.damaged)
    target = places.damaged / path.name
    if target.is_dir() and not target.is_symlink():
        disk.remove_tree(target)
    else:
        disk.unlink(target)
    disk.rename(path, target)
    return path.name
