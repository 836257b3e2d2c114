"""Brings the files of a manifest to this device: space, what is here already, requests, chunks.

What is *transferred* is a file, or the delta that makes it from a file that is here (:mod:`.delta`): both go by their
own digest through the same requests and chunks. The control connection carries the requests; the data connection exists
only while chunks are missing. All calls come from the control loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk
from skerry_agent.link.uplink import Publisher
from skerry_agent.update.applier import SubprocessApplier
from skerry_agent.update.delta import REFUSALS, Detour, find_way
from skerry_agent.update.delta_work import DeltaError
from skerry_agent.update.download import FULL, FileDownload
from skerry_agent.update.pacing import RequestPacer
from skerry_agent.update.ports import DeltaApplier, DownloadProgress
from skerry_agent.update.slots import MANIFEST
from skerry_contract.bitmap import encode_bitmap
from skerry_contract.errors import WireError
from skerry_contract.sampling import EVERY_RANK, rank
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.delivery_pb2 import Chunk, ChunkRefusal, ChunkRequest
from skerry_contract.v1.release_pb2 import FileEntry
from skerry_contract.wire import parse_message

log = logging.getLogger(__name__)
#: Chunks that the device takes at once.
WINDOW = 8
#: How long the broker keeps a request (seconds).
REQUEST_EXPIRY_S = 60
#: How often free space is looked at while there is too little (seconds).
SPACE_S = 5.0
#: Longest quiet that is told (milliseconds).
QUIET_MS = 1 << 31


class DataLink(Publisher, Protocol):
    """The data connection."""

    def start(self) -> None:
        """Begin to connect."""
        ...

    def stop(self) -> None:
        """Disconnect and join its threads."""
        ...


class Downloader:
    """See :class:`skerry_agent.update.ports.Downloads`."""

    def __init__(
        self,
        layout: AgentLayout,
        *,
        device_id: str,
        reserve_bytes: int,
        control: Publisher,
        open_data: Callable[[list[str]], DataLink],
        new_applier: Callable[[], DeltaApplier] = SubprocessApplier,
        disk: Disk = DISK,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is touched before :meth:`begin`.

        Args:
            layout: Data directory.
            device_id: This device.
            reserve_bytes: Free space that a download leaves alone.
            control: Sends requests.
            open_data: Makes the data connection for some digests (hexadecimal), not started.
            new_applier: Makes what applies one delta; by default in a process of its own.
            disk: File system.
            monotonic: Seconds.
        """
        self._layout = layout
        self._device_id = device_id
        self._reserve_bytes = reserve_bytes
        self._control = control
        self._open_data = open_data
        self._new_applier = new_applier
        self._disk = disk
        self._monotonic = monotonic
        self._folder = layout.update / "downloads"
        self._topic = device_topic(device_id, DeviceTopic.NEED)
        self._files: dict[str, FileDownload] = {}
        self._pacers: dict[str, RequestPacer] = {}
        self._ranks: dict[str, int] = {}
        self._entries: tuple[FileEntry, ...] = ()
        # By digest of the file that is wanted; and digests of the deltas that led nowhere.
        self._detours: dict[str, Detour] = {}
        self._failed_deltas: set[bytes] = set()
        self._notes: list[str] = []
        self._data: DataLink | None = None
        self._opened = False
        self._space_at = 0.0
        self._trouble = ""

    def begin(self, entries: Sequence[FileEntry]) -> None:
        """See :class:`Downloads`."""
        wanted = {entry.sha256.hex(): entry for entry in entries}
        if set(wanted) != set(self._files):
            self.stop()
            self._files = {name: FileDownload(entry, self._folder, self._disk) for name, entry in wanted.items()}
            self._ranks, self._pacers, self._detours = {}, {}, {}
            self._failed_deltas, self._notes = set(), []
            for name in wanted:
                self._pace(name)
            self._opened = False
        self._entries = tuple(entries)

    def _pace(self, digest: str) -> None:
        self._ranks[digest] = rank(self._device_id, bytes.fromhex(digest))
        self._pacers.setdefault(digest, RequestPacer(spread=self._ranks[digest] / EVERY_RANK))

    def poll(self) -> DownloadProgress:
        """See :class:`Downloads`."""
        try:
            if not self._opened:
                self._open()
            if self._opened:
                self._apply()
            if not self._complete():
                self._listen()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._wait_for_space(error.strerror or "no space")
        finished = self._opened and self._complete()
        if finished:
            self.stop()
        transfers = [self._transfer_of(name) for name in self._files]
        return DownloadProgress(
            done=sum(transfer.done for transfer in transfers),
            total=sum(transfer.count for transfer in transfers),
            finished=finished,
            waits_for="" if finished else self._trouble,
            note="; ".join(self._notes)[:300],
        )

    def _transfer_of(self, name: str) -> FileDownload:
        """What is downloaded for a wanted file: its delta, or the file itself."""
        detour = self._detours.get(name)
        return self._files[name] if detour is None else detour.download

    def _transfers(self) -> dict[str, FileDownload]:
        """By their own digest, what is downloaded for files that are not here."""
        needed = (self._transfer_of(name) for name, file in self._files.items() if not file.complete)
        return {transfer.name: transfer for transfer in needed}

    def _every_transfer(self) -> Iterable[FileDownload]:
        yield from self._files.values()
        for detour in self._detours.values():
            yield detour.download

    def _complete(self) -> bool:
        return all(file.complete for file in self._files.values())

    def _open(self) -> None:
        if self._monotonic() < self._space_at:
            return
        self._disk.make_folder(self._folder)
        deltas = {delta.sha256.hex() for file in self._files.values() for delta in file.entry.deltas}
        self._drop({*self._files, *deltas})
        for name, file in self._files.items():
            for source in self._on_this_device(name):
                if file.adopt(source):
                    log.info("%s is on this device already", name[:12])
                    break
            self._choose(name, file)
            self._transfer_of(name).open()
        needed = sum(
            detour.needed_bytes() if (detour := self._detours.get(name)) else file.missing_bytes()
            for name, file in self._files.items()
        )
        free = self._disk.free_bytes(self._folder)
        if needed and needed + self._reserve_bytes > free:
            self._wait_for_space(f"{needed} bytes to download and {self._reserve_bytes} in reserve, {free} free")
            return
        self._trouble = ""
        self._opened = True

    def _choose(self, name: str, file: FileDownload) -> None:
        """Go by a delta if its base is here and nothing of the file is yet."""
        if name in self._detours and not file.path.exists():
            return
        self._detours.pop(name, None)
        if file.path.exists() or file.begun:
            return
        way = find_way(file.entry, self._layout, avoid=self._failed_deltas)
        if way is None or way.delta.sha256.hex() in self._files:
            return
        self._detours[name] = Detour(file.entry, way, self._folder, self._new_applier(), self._disk)
        self._pace(way.delta.sha256.hex())
        sizes = f"{way.delta.size} instead of {file.entry.size} bytes"
        log.info("%s is made from %s by a delta: %s", file.entry.path, way.base, sizes)

    def _apply(self) -> None:
        """Make the next file whose delta is complete; one at a time, for each takes a process."""
        for name, detour in sorted(self._detours.items(), key=lambda each: not each[1].making):
            if not detour.download.complete:
                continue
            try:
                if not detour.step():
                    return
            except DeltaError as error:
                self._fetch_whole(name, error.reason)
                return
            detour.discard()
            del self._detours[name]
            self._files[name].open()
            log.info("%s was made by its delta", self._files[name].entry.path)
            return

    def _fetch_whole(self, name: str, why: str) -> None:
        """The delta of a file led nowhere: look again without it."""
        note = f"{self._files[name].entry.path} is fetched whole: {why}"
        log.warning("%s", note)
        self._notes.append(note)
        detour = self._detours.pop(name)
        self._failed_deltas.add(detour.download.entry.sha256)
        self._opened = False
        # The data connection listens to the digests that were wanted when it was opened.
        self.stop()
        detour.discard()

    def _wait_for_space(self, why: str) -> None:
        text = f"waits for free space: {why}"
        if text != self._trouble:
            log.warning("download %s", text)
        self._trouble = text
        self.stop()
        for file in self._every_transfer():
            file.close()
        self._opened = False
        self._space_at = self._monotonic() + SPACE_S

    def _on_this_device(self, name: str) -> Iterable[Path]:
        """Files of the slots that may have the digest ``name``: same size, not yet hashed."""
        size = self._files[name].entry.size
        for slot in ("a", "b"):
            folder = self._layout.slots / slot
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.name != MANIFEST and path.is_file() and path.stat().st_size == size:
                    yield path

    def _listen(self) -> None:
        if not self._opened:
            return
        missing = {name: file.missing() for name, file in self._transfers().items() if not file.complete}
        if not missing:
            return
        if self._data is None:
            self._data = self._open_data(sorted(missing))
            self._data.start()
        if not (self._data.ready and self._control.ready):
            self._trouble = "waits for the broker"
            return
        now = self._monotonic()
        for name, chunks in missing.items():
            if now >= self._pacers[name].due and self._say(self._transfers()[name], chunks, now):
                self._pacers[name].asked(now)
        if self._trouble == "waits for the broker":
            self._trouble = ""

    def _say(self, file: FileDownload, missing: Sequence[int], now: float) -> bool:
        """Tell the server what is missing of a file; False if that cannot be sent now."""
        request = ChunkRequest(
            device_id=self._device_id,
            file_sha256=file.entry.sha256,
            missing_bitmap=encode_bitmap(missing, file.count),
            chunk_count=file.count,
            window=WINDOW,
            chunk_bytes=file.entry.chunk_bytes,
            quiet_ms=min(QUIET_MS, int(self._pacers[file.name].quiet_for(now) * 1000)),
        )
        return self._control.publish(self._topic, request.SerializeToString(), expiry_s=REQUEST_EXPIRY_S)

    def connected(self) -> None:
        """The data or the control connection is new: ask for everything that is missing."""
        for pacer in self._pacers.values():
            pacer.connected(self._monotonic())

    def chunk(self, digest: str, payload: bytes) -> None:
        """Take in a chunk from the wire.

        Args:
            digest: From its topic (hexadecimal).
            payload: Serialized Chunk, not trusted.

        Raises:
            WireError: Malformed, or not what the manifest promised; it still counts as missing.
        """
        chunk = parse_message(Chunk, payload)
        if chunk.file_sha256.hex() != digest:
            raise WireError("chunk.file_sha256", expected=digest, got=chunk.file_sha256.hex())
        file = self._transfers().get(digest)
        if file is None or not self._opened:
            return
        try:
            if file.accept(chunk.index, chunk.data):
                now = self._monotonic()
                asked_to_report = self._ranks[digest] < chunk.report_below
                self._pacers[digest].heard(now, report_every=chunk.report_every if asked_to_report else 0)
                self._trouble = ""
                if file.complete:
                    self._say(file, (), now)  # nothing is lost with it: a server that hears nothing forgets, too
        except OSError as error:
            if error.errno not in FULL:
                self._trouble = f"cannot write: {error.strerror}"
                log.error("chunk %d of %s: %s", chunk.index, digest[:12], error)
                return
            self._wait_for_space(error.strerror or "no space")

    def refused(self, payload: bytes) -> None:
        """Take in a ChunkRefusal from the wire; raises WireError if it is malformed."""
        refusal = parse_message(ChunkRefusal, payload)
        pacer = self._pacers.get(refusal.file_sha256.hex())
        if pacer is not None:
            pacer.refused(self._monotonic())
            for name, detour in list(self._detours.items()):
                if detour.download.entry.sha256 == refusal.file_sha256:
                    detour.refusals += 1
                    if detour.refusals >= REFUSALS:
                        self._fetch_whole(name, f"the control plane refused its delta: {refusal.reason[:100]}")
            self._trouble = f"the control plane refused file {refusal.file_sha256.hex()[:12]}: {refusal.reason[:200]}"
            log.warning("%s", self._trouble)

    def verify(self) -> list[str]:
        """See :class:`Downloads`."""
        wrong = {name for name, file in self._files.items() if not self._verify(file)}
        if wrong:
            self._opened = False
        return [entry.path for entry in self._entries if entry.sha256.hex() in wrong]

    def _verify(self, file: FileDownload) -> bool:
        if not file.complete:
            self._disk.make_folder(self._folder)
            file.open()
        return file.verify()

    def path(self, sha256: bytes) -> Path:
        """See :class:`Downloads`."""
        return self._folder / sha256.hex()

    def stop(self) -> None:
        """See :class:`Downloads`."""
        if self._data is not None:
            self._data.stop()
            self._data = None
        for detour in self._detours.values():
            detour.halt()

    def clean(self) -> None:
        """See :class:`Downloads`."""
        self.stop()
        for file in self._every_transfer():
            file.close()
        self._files, self._pacers, self._ranks, self._entries, self._opened = {}, {}, {}, (), False
        self._detours, self._failed_deltas, self._notes = {}, set(), []
        self._drop(set())

    def _drop(self, keep: set[str]) -> None:
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name.split(".")[0] not in keep:
                    self._disk.unlink(path)
