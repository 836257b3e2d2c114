"""Brings the files of a manifest to this device: space, what is here already, requests, chunks.

The control connection carries the requests; the data connection exists only while chunks are missing. All calls come
from the control loop.
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
from skerry_agent.update.download import FULL, FileDownload
from skerry_agent.update.pacing import RequestPacer
from skerry_agent.update.ports import DownloadProgress
from skerry_agent.update.slots import MANIFEST
from skerry_contract.bitmap import encode_bitmap
from skerry_contract.errors import WireError
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
            disk: File system.
            monotonic: Seconds.
        """
        self._layout = layout
        self._device_id = device_id
        self._reserve_bytes = reserve_bytes
        self._control = control
        self._open_data = open_data
        self._disk = disk
        self._monotonic = monotonic
        self._folder = layout.update / "downloads"
        self._topic = device_topic(device_id, DeviceTopic.NEED)
        self._files: dict[str, FileDownload] = {}
        self._pacers: dict[str, RequestPacer] = {}
        self._entries: tuple[FileEntry, ...] = ()
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
            self._pacers = {name: RequestPacer() for name in wanted}
            self._opened = False
        self._entries = tuple(entries)

    def poll(self) -> DownloadProgress:
        """See :class:`Downloads`."""
        try:
            if not self._opened:
                self._open()
            if not self._complete():
                self._listen()
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._wait_for_space(error.strerror or "no space")
        finished = self._opened and self._complete()
        if finished:
            self.stop()
        waits = "" if finished else self._trouble
        return DownloadProgress(
            sum(file.done for file in self._files.values()),
            sum(file.count for file in self._files.values()),
            finished,
            waits,
        )

    def _complete(self) -> bool:
        return all(file.complete for file in self._files.values())

    def _open(self) -> None:
        if self._monotonic() < self._space_at:
            return
        self._disk.make_folder(self._folder)
        self._drop(set(self._files))
        for name, file in self._files.items():
            for source in self._on_this_device(name):
                if file.adopt(source):
                    log.info("%s is on this device already", name[:12])
                    break
            file.open()
        needed = sum(file.missing_bytes() for file in self._files.values())
        free = self._disk.free_bytes(self._folder)
        if needed and needed + self._reserve_bytes > free:
            self._wait_for_space(f"{needed} bytes to download and {self._reserve_bytes} in reserve, {free} free")
            return
        self._trouble = ""
        self._opened = True

    def _wait_for_space(self, why: str) -> None:
        text = f"waits for free space: {why}"
        if text != self._trouble:
            log.warning("download %s", text)
        self._trouble = text
        self.stop()
        for file in self._files.values():
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
        missing = {name: file.missing() for name, file in self._files.items() if not file.complete}
        if self._data is None:
            self._data = self._open_data(sorted(missing))
            self._data.start()
        if not (self._data.ready and self._control.ready):
            self._trouble = "waits for the broker"
            return
        now = self._monotonic()
        for name, chunks in missing.items():
            pacer, file = self._pacers[name], self._files[name]
            if now < pacer.due:
                continue
            request = ChunkRequest(
                device_id=self._device_id,
                file_sha256=file.entry.sha256,
                missing_bitmap=encode_bitmap(chunks, file.count),
                chunk_count=file.count,
                window=WINDOW,
                chunk_bytes=file.entry.chunk_bytes,
            )
            if self._control.publish(self._topic, request.SerializeToString(), expiry_s=REQUEST_EXPIRY_S):
                pacer.asked(now)
        if self._trouble == "waits for the broker":
            self._trouble = ""

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
        file = self._files.get(digest)
        if file is None or not self._opened:
            return
        try:
            if file.accept(chunk.index, chunk.data):
                self._pacers[digest].heard(self._monotonic())
                self._trouble = ""
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

    def clean(self) -> None:
        """See :class:`Downloads`."""
        self.stop()
        for file in self._files.values():
            file.close()
        self._files, self._pacers, self._entries, self._opened = {}, {}, (), False
        self._drop(set())

    def _drop(self, keep: set[str]) -> None:
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name.split(".")[0] not in keep:
                    self._disk.unlink(path)
