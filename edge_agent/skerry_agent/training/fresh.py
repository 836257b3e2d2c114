"""Which labelled samples an accepted update has seen: one small file that training writes and control reads.

``{"store_id", "position", "before", "campaign_id", "round"}``: samples of that store up to ``position`` were trained on
for that answer; ``before`` is the position to go back to if the answer did not count. An answer is taken for accepted
when it is given, and taken back when the control plane says otherwise.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from skerry_agent.files import DISK, Disk
from skerry_agent.policy.labelled import FreshMark, read_mark

logger = logging.getLogger(__name__)


class Positions(Protocol):
    """The labelled store."""

    @property
    def store_id(self) -> str:
        """Identity of the file."""
        ...

    def newest(self) -> int:
        """Position of the newest sample; 0 if there is none."""
        ...


class FreshSamples:
    """Writes the file; used by one thread."""

    def __init__(self, path: Path, positions: Positions, *, disk: Disk = DISK) -> None:
        self._path = path
        self._positions = positions
        self._disk = disk
        self._loaded = ("", 0)

    def loading(self) -> None:
        """The samples are about to be loaded; raises DeviceError."""
        self._loaded = (self._positions.store_id, self._positions.newest())

    def answered(self, campaign_id: str, round_number: int) -> None:
        """An answer made of the samples loaded last leaves the device."""
        store_id, position = self._loaded
        mark = read_mark(self._path)
        same = mark.store_id == store_id
        before = mark.position if same else 0
        if same and (mark.campaign_id, mark.round) == (campaign_id, round_number):
            before = mark.before  # the round was trained again: go back past both
        self._write(FreshMark(store_id, position, before, campaign_id, round_number))

    def heard(self, campaign_id: str, counted: int | None) -> None:
        """The control plane said which round of a campaign counted last; None: it did not say."""
        mark = read_mark(self._path)
        if counted is None or mark.campaign_id != campaign_id or mark.round <= counted:
            return
        self._write(FreshMark(mark.store_id, mark.before, mark.before))

    def _write(self, mark: FreshMark) -> None:
        try:
            self._disk.make_folder(self._path.parent)
            self._disk.write_atomically(self._path, json.dumps(asdict(mark)).encode())
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._path, error)
