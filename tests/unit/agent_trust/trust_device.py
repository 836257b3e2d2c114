"""The trust of one device without threads: the real mailbox, fetcher, ngclient, floors and clock."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime
from functools import cache
from pathlib import Path

from skerry_agent.files import Disk
from skerry_agent.trust.anchor import keep_root
from skerry_agent.trust.floors import Floors
from skerry_agent.trust.judge import Judge
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.trusted_clock import TrustedClock
from skerry_agent.update.ports import Approval, ApprovalRequest
from unit.agent_trust.repository import START, Files, Repository, asks, deliver

ENROLLED = ["ee" * 32]
#: Where files are that ngclient may rewrite at will.
CACHE = "metadata/"


class HastyDisk(Disk):
    """Does not wait for the platter."""

    def sync(self, descriptor: int) -> None:
        """Nothing."""

    def sync_folder(self, folder: Path) -> None:
        """Nothing."""


class TrustDevice:
    """One life; make another one on the same folder to restart it."""

    def __init__(self, root: Path, anchor: bytes, *, now: datetime = START, disk: Disk | None = None) -> None:
        self.disk = disk or HastyDisk()
        self.places = TrustPlaces(root / "trust")
        self.wall = now
        self.mailbox = TrustMailbox(monotonic=lambda: 0.0)
        keep_root(self.places, anchor, self.disk)
        self.restart()

    def restart(self) -> None:
        """Forget what is only in memory; what the broker retains comes again."""
        self.clock = TrustedClock(
            self.places.folder / "clock.json",
            wall=lambda: self.wall.timestamp(),
            monotonic=lambda: 0.0,
            disk=self.disk,
        )
        # Nothing comes while a test waits: a file that is not there is late at once.
        self.asked = Judge(
            self.places,
            self.mailbox,
            self.clock,
            enrolled=ENROLLED,
            deadline_s=0.0,
            disk=self.disk,
            monotonic=lambda: 0.0,
        )

    def judge(self, files: Files, request: ApprovalRequest | str | None, *, withheld: tuple[str, ...] = ()) -> Approval:
        deliver(self.mailbox, files, withheld=withheld)
        return self.asked.judge(asks(request) if isinstance(request, str) else request)

    def lose_cache(self) -> None:
        shutil.rmtree(self.places.metadata)

    def kept(self) -> dict[str, bytes]:
        """All of the folder but the cache of ngclient."""
        return {name: data for name, data in self.everything().items() if not name.startswith(CACHE)}

    def everything(self) -> dict[str, bytes]:
        folder = self.places.folder
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @property
    def floors(self) -> Floors:
        return Floors.from_json(self.places.floors.read_bytes())

    def versions(self) -> dict[str, int]:
        return {role: floor.version for role, floor in self.floors.roles.items()}


def experienced(root: Path) -> tuple[Repository, TrustDevice, Files]:
    """A device that has seen two states and committed release b, version 2; and the files of the first state."""
    repository, old, folder = _experience()
    for name, data in folder.items():
        path = root / "trust" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return repository.fork(), TrustDevice(root, old["1.root.json"]), dict(old)


@cache
def _experience() -> tuple[Repository, Files, dict[str, bytes]]:
    repository = Repository()
    repository.approve("a", 1)
    old = repository.publish()
    with tempfile.TemporaryDirectory() as root:
        device = TrustDevice(Path(root), old["1.root.json"])
        assert device.judge(old, "a").approved
        device.asked.floors.commit("digits", 1)
        repository.approve("b", 2)
        answer = device.judge(repository.publish(), "b")
        assert answer == Approval(True, True, "", 2), answer
        device.asked.floors.commit("digits", 2)
        folder = device.everything()
    del folder["metadata/root.json"]  # a link that ngclient makes
    return repository, old, folder
