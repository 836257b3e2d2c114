"""The boot counter: how often the agent was started while a release was on probation.

A release may take the whole machine down, faster than the control process can judge it. So the supervisor counts before
it starts anything, and at :data:`START_LIMIT` it points back to the release before by itself; the control process finds
that and ends the update. A start after a stop in order is not counted. The counter lies outside the slots, and nothing
heavy is imported here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.files import DISK, Disk
from skerry_agent.update.pointer import Pointer, go_back, read_pointer

log = logging.getLogger(__name__)
#: At this start of the agent during one probation, not counting those after a stop in order, the release goes.
START_LIMIT = 3


@dataclass(frozen=True)
class Boots:
    """Starts of the agent with one release on probation.

    Attributes:
        release_id: The release; empty before the first count.
        starts: How many.
    """

    release_id: str = ""
    starts: int = 0

    def gave_up(self, release_id: str) -> bool:
        """Whether ``release_id`` has used up its starts."""
        return self.release_id == release_id and self.starts >= START_LIMIT


def boots_path(layout: AgentLayout) -> Path:
    """Where the counter lies."""
    return layout.update / "boots.json"


def read_boots(layout: AgentLayout) -> Boots:
    """The counter; a broken one counts as none.

    Raises:
        OSError: The disk failed.
    """
    try:
        document = json.loads(boots_path(layout).read_bytes())
        return Boots(str(document["release_id"]), int(document["starts"]))
    except FileNotFoundError:
        return Boots()
    except (ValueError, TypeError, KeyError) as error:
        log.error("the boot counter is broken (%s): it begins anew", error)
        return Boots()


def count_start(layout: AgentLayout, disk: Disk = DISK) -> None:
    """Count a start, and go back to the release before if it is one too many. Call it before any process starts.

    Raises:
        OSError: The disk failed; the pointer is as it was.
    """
    pointer = _on_probation(layout)
    if pointer is None:
        return
    boots = read_boots(layout)
    starts = boots.starts + 1 if boots.release_id == pointer.release_id else 1
    _write(layout, Boots(pointer.release_id, starts), disk)
    if starts >= START_LIMIT:
        log.error("release %s was on probation at %d starts of the agent", pointer.release_id, starts)
        go_back(layout, pointer, disk)


def stopped_in_order(layout: AgentLayout, disk: Disk = DISK) -> None:
    """The start that now ends was not a crash.

    Raises:
        OSError: The disk failed; it then counts as one.
    """
    pointer, boots = _on_probation(layout), read_boots(layout)
    if pointer is not None and boots.release_id == pointer.release_id and boots.starts > 0:
        _write(layout, Boots(boots.release_id, boots.starts - 1), disk)


def forget_boots(layout: AgentLayout, disk: Disk = DISK) -> None:
    """Begin anew, before a release is switched to.

    Raises:
        OSError: The disk failed.
    """
    path = boots_path(layout)
    if path.exists():
        disk.unlink(path)
        disk.sync_folder(path.parent)


def _on_probation(layout: AgentLayout) -> Pointer | None:
    try:
        pointer = read_pointer(layout)
    except ArtifactError as error:
        log.error("%s", error)
        return None
    return None if pointer is None or pointer.committed else pointer


def _write(layout: AgentLayout, boots: Boots, disk: Disk) -> None:
    disk.make_folder(layout.update)
    disk.write_atomically(boots_path(layout), json.dumps(boots.__dict__).encode())
