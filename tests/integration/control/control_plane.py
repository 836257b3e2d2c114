"""The server's side of the broker for tests: the real link and chunk server, signed metadata, and lists of what devices
said."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from integration.control.metadata import SignedMetadata
from skerry_contract.topics import DeviceTopic, device_topic, every_device_filter
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState, Presence, ReportedState
from skerry_contract.v1.telemetry_pb2 import UplinkAck, UplinkMessage
from skerry_server.controllers import ControllerRunner
from skerry_server.delivery.chunk_server import ChunkServer
from skerry_server.errors import NotFoundError
from skerry_server.link import ServerLink
from unit.update.releases import DEVICE


class MemoryArtifacts:
    """The part of the artifact store that delivery reads, in memory; can give wrong bytes."""

    def __init__(self, blobs: Mapping[str, bytes]) -> None:
        self.blobs = dict(blobs)
        self.corrupt: set[tuple[str, int]] = set()
        self.reads: list[tuple[str, int]] = []
        self.hold_after: int | None = None
        self.release = threading.Event()

    def size(self, sha256: str, /) -> int:
        if sha256 not in self.blobs:
            raise NotFoundError("artifact", sha256)
        return len(self.blobs[sha256])

    def open_chunk(self, file_sha256_hex: str, index: int, chunk_bytes: int, /) -> bytes:
        self.size(file_sha256_hex)
        if self.hold_after is not None and len(self.reads) >= self.hold_after:
            self.release.wait(timeout=60)
        self.reads.append((file_sha256_hex, index))
        data = self.blobs[file_sha256_hex][index * chunk_bytes : (index + 1) * chunk_bytes]
        return bytes(len(data)) if (file_sha256_hex, index) in self.corrupt else data


class ControlPlane:
    """Publishes desired states, serves chunks, acknowledges uplink messages while ``acknowledging`` is set."""

    def __init__(self, port: int, blobs: Mapping[str, bytes]) -> None:
        self.link = ServerLink(host="127.0.0.1", port=port, username="server", password="x", client_id="test-server")
        self.artifacts = MemoryArtifacts(blobs)
        self.chunks = ChunkServer(self.link, self.artifacts)
        self.metadata = SignedMetadata(self.link)
        self.acknowledging = True
        self._lock = threading.Lock()
        self._reported: dict[str, ReportedState] = {}
        self._presence: dict[str, bool] = {}
        self._uplinks: list[UplinkMessage] = []
        self._runner = ControllerRunner([self.chunks])

    def start(self) -> None:
        self.link.start()
        self.chunks.start()
        self.link.subscribe(every_device_filter(DeviceTopic.REPORTED), self._on_reported)
        self.link.subscribe(every_device_filter(DeviceTopic.PRESENCE), self._on_presence)
        self.link.subscribe(every_device_filter(DeviceTopic.UP), self._on_uplink)
        self._runner.start()
        connected = threading.Event()
        self.link.on_connected(connected.set)
        assert connected.wait(timeout=20), "the control plane has no connection"
        self.link.on_connected(self._publish_metadata)

    def stop(self) -> None:
        self._runner.stop(deadline_s=10)
        self.link.stop()

    def desire(self, payload: bytes, device_id: str = DEVICE) -> None:
        """Approve the release that a desired state names, and publish the state."""
        state = DesiredState.FromString(SignedEnvelope.FromString(payload).payload)
        if state.HasField("release"):
            self.metadata.approve(state.release)
        self.link.publish(device_topic(device_id, DeviceTopic.DESIRED), payload, retain=True).result(timeout=10)

    def reported(self, device_id: str = DEVICE) -> ReportedState:
        with self._lock:
            return self._reported.get(device_id, ReportedState())

    def online(self, device_id: str = DEVICE) -> bool | None:
        with self._lock:
            return self._presence.get(device_id)

    def uplinks(self) -> list[UplinkMessage]:
        with self._lock:
            return list(self._uplinks)

    def _publish_metadata(self) -> None:
        self.metadata.publish()

    def _on_reported(self, topic: str, payload: bytes) -> None:
        state = ReportedState.FromString(payload)
        with self._lock:
            self._reported[state.device_id] = state

    def _on_presence(self, topic: str, payload: bytes) -> None:
        presence = Presence.FromString(payload)
        with self._lock:
            self._presence[presence.device_id] = presence.online

    def _on_uplink(self, topic: str, payload: bytes) -> None:
        message = UplinkMessage.FromString(payload)
        with self._lock:
            self._uplinks.append(message)
        if self.acknowledging:
            ack = UplinkAck(outbox_id=message.outbox_id, sequences=[message.sequence])
            self.link.publish(device_topic(message.device_id, DeviceTopic.ACK), ack.SerializeToString())
