"""Updates of the site's devices, on disk before they count.

One file holds one update whole, by the name of its device, in a folder of the round and of the question that was asked.
A gateway that is killed finds them there, adds them in the order in which they came, and asks only who is missing. With
the site's answer they are thrown away: one device's update says more about its data than anybody needs to keep.

Which answers counted is remembered for each device, because a lossy wire makes it carry what its last update has not
delivered: a device's update counted when it was in the site's mean, and the control plane says that the mean counted.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry_agent.training.kept_files import KeptFiles
from skerry_contract.limits import PARAMETER_BYTES
from skerry_server.federation.rounds.updates import Payload, Update

logger = logging.getLogger(__name__)

#: Names of files that are no device's: device names have no underscore.
_OPENED = "_opened"
_COUNTED = "_counted"
_HEAD = struct.Struct("<I")
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Kept:
    """An update as it was accepted.

    Attributes:
        device_id: Whose.
        examples: As the device said.
        metrics: As it was checked.
        payload: As it came.
    """

    device_id: str
    examples: int
    metrics: dict[str, float]
    payload: Payload


class RoundFiles:
    """The updates of one round; for one thread."""

    def __init__(self, folder: Path, *, wall: Callable[[], float]) -> None:
        """Open the folder; it is made with the first write.

        Raises:
            OSError: It cannot be written.
        """
        self._files = KeptFiles(folder, limit=2 * PARAMETER_BYTES)
        opened = self._files.read(_OPENED)
        try:
            self._opened_s = float(opened or b"")
        except ValueError:
            self._opened_s = wall()
            self._files.write(_OPENED, str(self._opened_s).encode())
        self._wall = wall

    @property
    def age_s(self) -> float:
        """Seconds since the question came first, by the wall clock; never negative."""
        return max(0.0, self._wall() - self._opened_s)

    def record(self, update: Update) -> None:
        """Make an update durable; raises OSError, and then it does not count."""
        head = {"device_id": update.device_id, "examples": update.examples, "metrics": update.metrics}
        encoded = json.dumps(head).encode()
        self._files.write(update.device_id, b"".join((_HEAD.pack(len(encoded)), encoded, update.payload.pack())))

    def updates(self) -> Iterator[Kept]:
        """Every update, in the order in which they came; one that is damaged is dropped, and its device asked again."""
        for name in self._files.names():
            if name == _OPENED:
                continue
            content = self._files.read(name)
            if content is None:
                continue
            try:
                yield _decode(content)
            except (ValueError, KeyError, TypeError, struct.error) as error:
                logger.warning("the journalled update of %s is dropped: %s", name, error)
                self.forget(name)

    def forget(self, device_id: str) -> None:
        """Drop an update, so that its device is asked again."""
        self._files.remove(device_id)


def _decode(content: bytes) -> Kept:
    (size,) = _HEAD.unpack_from(content)
    if size > _HEAD_BYTES:
        raise ValueError(f"a head of {size} bytes")
    head = json.loads(content[_HEAD.size : _HEAD.size + size])
    metrics = {str(name): float(value) for name, value in head["metrics"].items()}
    payload = Payload.unpack(content[_HEAD.size + size :])
    return Kept(str(head["device_id"]), int(head["examples"]), metrics, payload)


class SiteJournal:
    """The rounds of one gateway; for one thread."""

    def __init__(self, folder: Path, *, wall: Callable[[], float] = time.time) -> None:
        """``wall``: Unix seconds, for the age of a round over a restart."""
        self._folder = folder
        self._wall = wall

    def open(self, campaign_id: str, number: int, question: str) -> RoundFiles:
        """The files of a round and question; those of other rounds of the campaign are gone.

        Raises:
            OSError: It cannot be written.
        """
        name = f"{number:07d}-{question[:32]}"
        campaign = self._folder / campaign_id
        for other in campaign.iterdir() if campaign.is_dir() else ():
            if other.is_dir() and other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        return RoundFiles(campaign / name, wall=self._wall)

    def close(self, campaign_id: str) -> None:
        """The site's answer is safe: the updates behind it are not needed any more."""
        campaign = self._folder / campaign_id
        for folder in campaign.iterdir() if campaign.is_dir() else ():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)

    def answered(self, campaign_id: str, number: int, members: Collection[str]) -> None:
        """The site's mean of a round is of these devices; whether it counts will be told.

        Raises:
            OSError: It cannot be written.
        """
        counted = self._counted(campaign_id)
        document = {"round": number, "members": sorted(members), "counted": counted}
        self._campaign_files(campaign_id).write(_COUNTED, json.dumps(document).encode())

    def counted(self, campaign_id: str, upstream: int) -> dict[str, int]:
        """Device to the last round in which its update counted, given the last of the site's means that counted.

        Raises:
            OSError: It cannot be written.
        """
        files = self._campaign_files(campaign_id)
        document = self._document(campaign_id)
        counted = self._counted(campaign_id)
        number = int(document.get("round", 0))
        if number and number <= upstream:
            counted |= dict.fromkeys((str(name) for name in document.get("members", [])), number)
        counted = {device: each for device, each in counted.items() if each <= upstream}
        if number <= upstream or counted != self._counted(campaign_id):
            files.write(_COUNTED, json.dumps({"counted": counted}).encode())
        return counted

    def keep_only(self, campaigns: Collection[str]) -> None:
        """Forget campaigns that are over."""
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if folder.is_dir() and folder.name not in campaigns:
                logger.info("campaign %s is over: its updates are thrown away", folder.name)
                shutil.rmtree(folder, ignore_errors=True)

    def _campaign_files(self, campaign_id: str) -> KeptFiles:
        return KeptFiles(self._folder / campaign_id, limit=1 << 20)

    def _document(self, campaign_id: str) -> dict[str, Any]:
        content = self._campaign_files(campaign_id).read(_COUNTED)
        try:
            document = json.loads(content) if content else {}
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def _counted(self, campaign_id: str) -> dict[str, int]:
        found = self._document(campaign_id).get("counted", {})
        return {str(device): int(number) for device, number in found.items()} if isinstance(found, dict) else {}
