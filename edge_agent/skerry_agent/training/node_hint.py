"""Remembers which node of the SuperLink this device was, in one small file that may be lost.

A node that was killed counts as online for up to two heartbeats, and the SuperLink refuses to activate it again; with
its identifier it can be deactivated first.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from skerry_agent.files import write_atomically

logger = logging.getLogger(__name__)


class NodeHint:
    """The identifier of the last time, 0 when there was none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.node_id = self._read()

    def remember(self, node_id: int) -> None:
        """Keep ``node_id``; a disk that is full only costs time after a kill."""
        if node_id == self.node_id:
            return
        self.node_id = node_id
        try:
            write_atomically(self._path, json.dumps({"node_id": str(node_id)}).encode())
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._path, error)

    def _read(self) -> int:
        try:
            return int(json.loads(self._path.read_bytes())["node_id"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s is broken and will be replaced: %s", self._path, error)
            return 0
