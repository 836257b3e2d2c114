"""What lies around the updater: each implements its port and can misbehave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from skerry_agent.config import AgentLayout
from skerry_agent.files import Disk
from skerry_agent.update.decisions import Sight
from skerry_agent.update.ports import ActivationResult, Approval, ApprovalRequest, ProofResult
from skerry_agent.update.slots import MANIFEST, SlotName, read_pointer, read_slot
from skerry_contract.bitmap import decode_bitmap
from skerry_contract.v1.delivery_pb2 import Chunk, ChunkRefusal, ChunkRequest
from unit.update.releases import DEVICE, VERIFIER


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


class FakeApprovals:
    """The signed metadata: who is approved under which version, and floors on disk that only rise."""

    def __init__(self, layout: AgentLayout, disk: Disk) -> None:
        self._path = layout.trust / "floors.json"
        self._disk = disk
        self.versions: dict[str, int] = {}
        self.refuse: dict[str, Approval] = {}
        self.silent = False
        self.asked: list[str] = []
        self._open: ApprovalRequest | None = None

    def floor(self, task: str = "digits") -> int:
        try:
            return int(json.loads(self._path.read_bytes())[task])
        except FileNotFoundError:
            return 0

    def ask(self, request: ApprovalRequest) -> None:
        self.asked.append(request.release_id)
        self._open = request

    def poll(self) -> Approval | None:
        if self.silent or self._open is None:
            return None
        request, self._open = self._open, None
        if request.release_id in self.refuse:
            return self.refuse[request.release_id]
        version = self.versions.get(request.release_id, int(request.release_id.rpartition("-")[2]))
        if version < self.floor(request.task):
            return Approval(False, True, f"version {version} is below {self.floor(request.task)}")
        return Approval(True, False, "", version)

    def committed(self, task: str, version: int) -> None:
        if version > self.floor(task):
            self._disk.make_folder(self._path.parent)
            self._disk.write_atomically(self._path, json.dumps({task: version}).encode())

    def stop(self) -> None:
        self._open = None


class FakePolicy:
    """What the owner says, in so many words."""

    def __init__(self) -> None:
        self.closed = ""
        self.metered = ""
        self.transfers: list[int] = []

    def window(self) -> str:
        return self.closed

    def network(self, transfer_bytes: int) -> str:
        self.transfers.append(transfer_bytes)
        return self.metered if transfer_bytes else ""


def check_slot(layout: AgentLayout, slot: SlotName) -> str:
    """Assert that a slot holds exactly what its signed manifest says; returns its release."""
    content = read_slot(layout, slot, VERIFIER)
    expected = {entry.path: entry.sha256 for entry in content.manifest.files}
    found = {
        path.relative_to(content.folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in content.folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    left = set(expected) - set(found)
    if left and len(content.manifest.variants) > 1:  # a device may do without forms that it does not need
        assert left <= {variant.path for variant in content.manifest.variants}
        expected = {path: digest for path, digest in expected.items() if path not in left}
    assert found == expected
    return content.manifest.release_id
