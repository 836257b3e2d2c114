"""A device without processes and without a network: the real updater and downloader, fakes at the ports, a disk whose
power can be cut at every system call, and a clock that the test moves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.files import Disk
from skerry_agent.update.decisions import Sight
from skerry_agent.update.downloader import Downloader
from skerry_agent.update.ports import ActivationResult, ProofResult
from skerry_agent.update.slots import MANIFEST, SlotName, read_pointer, read_slot
from skerry_agent.update.update_machine import SETTLED
from skerry_agent.update.updater import Updater
from skerry_contract.bitmap import decode_bitmap
from skerry_contract.errors import WireError
from skerry_contract.v1.delivery_pb2 import Chunk, ChunkRefusal, ChunkRequest
from skerry_contract.v1.telemetry_pb2 import UpdateEvent
from unit.update.releases import DEVICE, VERIFIER, MadeRelease


class PowerCut(BaseException):
    """The process is gone; no handler of the code under test may see it."""


class TestDisk(Disk):
    """Counts system calls; cuts the power before the call number ``cut_at``, in the middle of it if it is a write."""

    __test__ = False

    def __init__(self, *, cut_at: int | None = None, torn: bool = False) -> None:
        self.calls: list[str] = []
        self.cut_at = cut_at
        self.torn = torn
        self.free = 1 << 40
        self.fail: Callable[[str, Path | None], OSError | None] = lambda call, path: None

    def _tick(self, call: str, path: Path | None = None) -> None:
        self.calls.append(call)
        if self.cut_at is not None and len(self.calls) > self.cut_at:
            raise PowerCut(call)
        error = self.fail(call, path)
        if error is not None:
            raise error

    def create(self, path: Path, *, mode: int = 0o600, truncate: bool = True) -> int:
        self._tick("create", path)
        return super().create(path, mode=mode, truncate=truncate)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        try:
            self._tick("write", Path(f"/proc/self/fd/{descriptor}").readlink())
        except PowerCut:
            if self.torn:
                super().write(descriptor, data[: len(data) // 2], offset)
            raise
        super().write(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._tick("truncate")
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._tick("sync")

    def rename(self, source: Path, target: Path) -> None:
        self._tick("rename", target)
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._tick("sync_folder", folder)

    def link(self, source: Path, target: Path) -> None:
        self._tick("link", target)
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._tick("unlink", path)
        super().unlink(path)

    def make_folder(self, folder: Path) -> None:
        self._tick("make_folder", folder)
        super().make_folder(folder)

    def remove_folder(self, folder: Path) -> None:
        self._tick("remove_folder", folder)
        super().remove_folder(folder)

    def free_bytes(self, folder: Path) -> int:
        return self.free


class Wire:
    """Broker and control plane in one: answers requests with chunks, wrongly if it is told to."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.ready = True
        self.requests: list[ChunkRequest] = []
        self.queue: list[tuple[str, bytes]] = []
        self.refusals: list[bytes] = []
        self.published = 0
        self.opened: list[list[str]] = []
        self.started = self.stopped = 0
        self.spoil: Callable[[Chunk], list[Chunk]] = lambda chunk: [chunk]

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        if not self.ready:
            return False
        assert topic == f"skerry/v1/d/{DEVICE}/need"
        assert not retain
        request = ChunkRequest.FromString(payload)
        self.requests.append(request)
        digest = request.file_sha256.hex()
        data = self.blobs.get(digest)
        if data is None:
            self.refusals.append(
                ChunkRefusal(file_sha256=request.file_sha256, reason="no such file").SerializeToString()
            )
            return True
        for index in decode_bitmap(request.missing_bitmap, request.chunk_count):
            piece = data[index * request.chunk_bytes : (index + 1) * request.chunk_bytes]
            chunk = Chunk(
                file_sha256=request.file_sha256, index=index, data=piece, sha256=hashlib.sha256(piece).digest()
            )
            for sent in self.spoil(chunk):
                self.queue.append((digest, sent.SerializeToString()))
                self.published += 1
        return True

    def open_data(self, digests: list[str]) -> Wire:
        self.opened.append(digests)
        return self

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1


class FakeServing:
    """Serving as the updater sees it; what it answers with after a power cut is what the pointer says."""

    def __init__(self, layout: AgentLayout) -> None:
        self._layout = layout
        pointer = read_pointer(layout)
        self.release_id = "" if pointer is None else pointer.release_id
        self.away = False
        self.refuse: set[str] = set()
        self.failing: set[str] = set()
        self.pid = 100
        self.requests = 0
        self.activations: list[str] = []
        self._result: ActivationResult | None = None

    def sight(self) -> Sight | None:
        if self.away:
            return None
        self.requests += 50
        errors = self.requests // 2 if self.release_id in self.failing else 0
        return Sight(self.release_id, self.pid, self.requests, errors)

    def activate(self, slot: SlotName, release_id: str) -> None:
        if self.away:
            self._result = ActivationResult(False, False, "UNAVAILABLE")
        elif release_id in self.refuse:
            self._result = ActivationResult(False, True, "golden outputs differ")
        else:
            content = read_slot(self._layout, slot, VERIFIER)
            assert content.manifest.release_id == release_id
            self.release_id, self.requests = release_id, 0
            self.activations.append(release_id)
            self._result = ActivationResult(True, False)

    def activation(self) -> ActivationResult | None:
        result, self._result = self._result, None
        return result


class FakeProver:
    """Reads the slot like the real one; refuses the releases it is told to."""

    def __init__(self, layout: AgentLayout) -> None:
        self._layout = layout
        self.refuse: set[str] = set()
        self.proofs: list[str] = []
        self._slot: SlotName | None = None

    def start(self, slot: SlotName) -> None:
        self._slot = slot

    def poll(self) -> ProofResult | None:
        assert self._slot is not None
        release_id = check_slot(self._layout, self._slot)
        self.proofs.append(release_id)
        return ProofResult(release_id not in self.refuse, "golden outputs" if release_id in self.refuse else "fp32")

    def stop(self) -> None:
        self._slot = None


def check_slot(layout: AgentLayout, slot: SlotName) -> str:
    """Assert that a slot holds exactly what its signed manifest says; returns its release."""
    content = read_slot(layout, slot, VERIFIER)
    expected = {entry.path: entry.sha256 for entry in content.manifest.files}
    found = {
        path.relative_to(content.folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in content.folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert found == expected
    return content.manifest.release_id


class TestDevice:
    """One life of a device's control process on a folder; make another one on the same folder to restart it."""

    __test__ = False

    def __init__(self, root: Path, *releases: MadeRelease, disk: TestDisk | None = None) -> None:
        self.layout = AgentLayout(root)
        self.disk = disk or TestDisk()
        self.now = 1000.0
        self.wall_ms = 1_700_000_000_000
        self.wire = Wire({digest: data for release in releases for digest, data in release.by_digest.items()})
        self.serving = FakeServing(self.layout)
        self.prover = FakeProver(self.layout)
        self.events: list[UpdateEvent] = []
        self.wrong: list[WireError] = []
        self.downloader = Downloader(
            self.layout,
            device_id=DEVICE,
            reserve_bytes=1000,
            control=self.wire,
            open_data=self.wire.open_data,
            disk=self.disk,
            monotonic=lambda: self.now,
        )
        self.updater = Updater(
            self.layout,
            device_id=DEVICE,
            verifier=VERIFIER,
            downloads=self.downloader,
            prover=self.prover,
            serving=self.serving,
            record=self.events.append,
            disk=self.disk,
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
            if self.updater.snapshot.state in SETTLED and follows and not self.waiting():
                self.step()
                return
        raise AssertionError(f"not settled: {self.updater.snapshot}")

    def waiting(self) -> bool:
        return self.updater._journal.handled < self.updater._journal.sequence

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
