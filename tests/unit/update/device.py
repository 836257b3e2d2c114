"""A device without processes and without a network: the real updater and downloader, fakes at the ports, a disk that
fails when it is told to, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.files import Disk
from skerry_agent.update.apply_delta import InProcessApplier
from skerry_agent.update.boots import count_start
from skerry_agent.update.downloader import Downloader
from skerry_agent.update.ports import DeltaApplier
from skerry_agent.update.slots import read_pointer
from skerry_agent.update.update_machine import SETTLED, State
from skerry_agent.update.updater import Updater
from skerry_contract.errors import WireError
from skerry_contract.v1.telemetry_pb2 import UpdateEvent
from unit.update.disks import TestDisk
from unit.update.fakes import FakeApprovals, FakePolicy, FakeProver, FakeServing, Wire, check_slot
from unit.update.releases import DEVICE, VERIFIER, MadeRelease


class TestDevice:
    """One life of a device's control process on a folder; make another one on the same folder to restart it."""

    __test__ = False

    def __init__(
        self,
        root: Path,
        *releases: MadeRelease,
        disk: Disk | None = None,
        new_applier: Callable[[], DeltaApplier] | None = None,
    ) -> None:
        """Deltas are applied in this process, on its disk, unless ``new_applier`` makes something else."""
        self.layout = AgentLayout(root)
        self.disk = TestDisk()
        used = disk or self.disk
        count_start(self.layout, used)
        self.now = 1000.0
        self.wall_ms = 1_700_000_000_000
        self.wire = Wire({digest: data for release in releases for digest, data in release.by_digest.items()})
        self.serving = FakeServing(self.layout)
        self.prover = FakeProver(self.layout)
        self.approvals = FakeApprovals(self.layout, used)
        self.policy = FakePolicy()
        self.events: list[UpdateEvent] = []
        self.wrong: list[WireError] = []
        self.downloader = Downloader(
            self.layout,
            device_id=DEVICE,
            reserve_bytes=1000,
            control=self.wire,
            open_data=self.wire.open_data,
            new_applier=new_applier or (lambda: InProcessApplier(used)),
            disk=used,
            monotonic=lambda: self.now,
        )
        self.updater = Updater(
            self.layout,
            device_id=DEVICE,
            verifier=VERIFIER,
            downloads=self.downloader,
            prover=self.prover,
            serving=self.serving,
            approvals=self.approvals,
            policy=self.policy,
            record=self.events.append,
            reserve_bytes=1000,
            disk=used,
            monotonic=lambda: self.now,
            wall_ms=lambda: self.wall_ms,
        )

    def step(self) -> None:
        """One turn of the control loop."""
        self.now += max(0.05, self.updater.step())
        queue, self.wire.queue = self.wire.queue, []
        for digest, payload in queue:
            try:
                self.downloader.chunk(digest, payload)
            except WireError as error:
                self.wrong.append(error)
        refusals, self.wire.refusals = self.wire.refusals, []
        for payload in refusals:
            self.downloader.refused(payload)

    def settle(self, *, turns: int = 400) -> None:
        """Turn until nothing is going on and serving follows the pointer."""
        for _ in range(turns):
            self.step()
            pointer = read_pointer(self.layout)
            follows = pointer is None or self.serving.release_id == pointer.release_id
            if self.updater.snapshot.state in SETTLED and follows and not self.updater.busy:
                self.step()
                return
        raise AssertionError(f"not settled: {self.updater.snapshot}")

    def reach(self, state: State, *, turns: int = 400) -> None:
        """Turn until the update is in a state."""
        for _ in range(turns):
            if self.updater.snapshot.state is state:
                return
            self.step()
        raise AssertionError(f"not in {state.value}: {self.updater.snapshot}")

    @property
    def chain(self) -> list[str]:
        """The states that were passed through."""
        return [event.to_state for event in self.events]

    def answering(self) -> str:
        """The release that the pointer names, whose slot is checked to the last byte; empty if there is none."""
        pointer = read_pointer(self.layout)
        if pointer is None:
            return ""
        assert check_slot(self.layout, pointer.slot) == pointer.release_id
        return pointer.release_id


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to compare what is on disk before and after."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
