"""What the training process tells the other processes of the agent, in one small file.

``{"flower_node_id": "<decimal>", "training": bool, "detail": str, "pid": int}``, replaced atomically, and written only
when it changes. The control process reports it to the control plane.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from skerry_agent.files import write_atomically

logger = logging.getLogger(__name__)


class TrainingStatus:
    """Writes the file; safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._node_id = 0
        self._link_detail = "starting"
        self._busy = ""
        self._written = ""

    def link(self, node_id: int, detail: str) -> None:
        """The node's identifier, 0 while there is none, and what it waits for."""
        with self._lock:
            self._node_id, self._link_detail = node_id, detail
            self._write()

    def busy(self, detail: str) -> None:
        """What is being trained; empty when nothing is."""
        with self._lock:
            self._busy = detail
            self._write()

    def _write(self) -> None:
        document = {
            "flower_node_id": str(self._node_id),
            "training": bool(self._busy),
            "detail": self._busy or self._link_detail,
            "pid": os.getpid(),
        }
        text = json.dumps(document, sort_keys=True)
        if text == self._written:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, text.encode())
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._path, error)
            return
        self._written = text
