"""Download over HTTPS: the real device API with real certificates, the real downloader."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration.runtime.broker_process import ControlPlane
from integration.runtime.identities import client_tls, make_identity
from skerry_agent.config import AgentLayout
from skerry_agent.link.backoff import Backoff
from skerry_agent.link.mqtt import Incoming, LinkEvent
from skerry_agent.update.downloader import Downloader
from skerry_agent.update.https_source import HttpsSource
from skerry_contract.limits import CHUNK_BYTES
from skerry_contract.manifest import describe_folder
from skerry_contract.topics import DeviceTopic, parse_topic
from skerry_contract.v1.release_pb2 import FileEntry
from skerry_server.device_api.server import DeviceServer
from skerry_server.fleet import enrollment
from skerry_server.fleet.authority import CertificateAuthority
from skerry_server.store.tables import Device

Wait = Callable[..., None]
DEVICE = "device-a"
DATA = os.urandom(CHUNK_BYTES * 20 + 777)
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass
class Rig:
    plane: ControlPlane
    identity: Path
    server: DeviceServer

    @property
    def port(self) -> int:
        return self.plane.context.config.device_port

    def get(
        self, path: str, *, tls: ssl.SSLContext | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=20, context=tls or client_tls(self.identity)
        )
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    plane = ControlPlane(tmp_path_factory.mktemp("plane"), lambda *_, **__: None)  # its broker is never started
    assert plane.context.artifacts.put_bytes(DATA) == SHA
    server = DeviceServer(plane.context)
    server.start()
    made = Rig(plane, plane.enroll(DEVICE), server)
    yield made
    made.server.stop(grace_s=1)
    plane.close()


@dataclass
class Loop:
    """What the control loop does: hands events to the downloader."""

    rig: Rig
    folder: Path
    events: queue.Queue[LinkEvent] = field(default_factory=lambda: queue.Queue(64))
    refused: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = HttpsSource(
            f"https://127.0.0.1:{self.rig.port}",
            device_id=DEVICE,
            tls=lambda: client_tls(self.rig.identity),
            post=self.post,
            backoff=Backoff(self.folder / "backoff.json", ceiling_s=0.2),
        )
        self.downloader = Downloader(
            AgentLayout(self.folder),
            device_id=DEVICE,
            reserve_bytes=0,
            control=self.source,
            open_data=self.source.open,
        )

    def post(self, event: LinkEvent) -> bool:
        try:
            self.events.put(event, timeout=0.1)
        except queue.Full:
            return False
        return True

    def turn(self) -> bool:
        finished = self.downloader.poll().finished
        try:
            event = self.events.get(timeout=0.02)
        except queue.Empty:
            return finished
        assert isinstance(event, Incoming)
        parsed = parse_topic(event.topic)
        if parsed.kind is DeviceTopic.REFUSE:
            self.refused.append(event.payload)
            self.downloader.refused(event.payload)
        else:
            assert parsed.sha256_hex is not None
            self.downloader.chunk(parsed.sha256_hex, event.payload)
        return finished


def entry(tmp_path: Path, data: bytes) -> FileEntry:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "infer.onnx").write_bytes(data)
    (made,) = describe_folder(folder)
    return made


def test_a_range_of_a_file(rig: Rig) -> None:
    status, headers, body = rig.get(f"/device/v1/files/{SHA}", headers={"Range": "bytes=122000-250000"})
    assert (status, body) == (206, DATA[122_000:250_001])
    assert headers["content-range"] == f"bytes 122000-250000/{len(DATA)}"
    assert headers["etag"] == f'"{SHA}"'


def test_the_whole_file_when_no_range_or_another_content_is_named(rig: Rig) -> None:
    cases: list[dict[str, str]] = [{}, {"Range": "bytes=0-9", "If-Range": '"another"'}]
    for headers in cases:
        status, answered, body = rig.get(f"/device/v1/files/{SHA}", headers=headers)
        assert (status, hashlib.sha256(body).hexdigest()) == (200, SHA)
        assert answered["content-length"] == str(len(DATA))


def test_what_cannot_be_served_is_told(rig: Rig) -> None:
    status, headers, body = rig.get(f"/device/v1/files/{SHA}", headers={"Range": f"bytes={len(DATA)}-"})
    assert (status, headers["content-range"]) == (416, f"bytes */{len(DATA)}")
    assert headers["content-type"] == "application/problem+json"
    assert b"the file has" in body
    assert rig.get(f"/device/v1/files/{'0' * 64}")[0] == 404
    assert rig.get("/device/v1/files/..%2F..%2Fetc")[0] in (404, 422)


def test_only_a_device_that_is_not_revoked_gets_anything(rig: Rig, tmp_path: Path) -> None:
    path = f"/device/v1/files/{SHA}"
    anonymous = ssl.create_default_context(cafile=str(rig.identity / "authority.pem"))
    assert rig.get(path, tls=anonymous)[0] == 403
    authority = CertificateAuthority.load(rig.plane.context.layout.pki)
    forged = client_tls(make_identity(authority, "never-enrolled", tmp_path / "forged"))
    assert rig.get(path, tls=forged)[0] in (403, 404)
    revoked = rig.plane.enroll("device-b")
    assert rig.get(path, tls=client_tls(revoked), headers={"Range": "bytes=0-0"})[0] == 206
    with rig.plane.context.database.transaction() as session:
        enrollment.revoke(session, rig.plane.context, device_id="device-b", reason="stolen", actor="test")
    assert rig.get(path, tls=client_tls(revoked), headers={"Range": "bytes=0-0"})[0] == 403
    with rig.plane.context.database.reading() as session:
        assert session.get_one(Device, "device-b").revoked


def test_the_downloader_brings_a_file(rig: Rig, tmp_path: Path, wait_until: Wait) -> None:
    loop = Loop(rig, tmp_path / "device")
    wanted = entry(tmp_path, DATA)
    loop.downloader.begin([wanted])
    wait_until(loop.turn, what="the file is here")
    assert loop.downloader.verify() == []
    assert loop.downloader.path(wanted.sha256).read_bytes() == DATA
    assert loop.source._thread is None, "nothing runs when nothing is missing"


def test_a_server_that_goes_away_is_waited_for_and_nothing_is_fetched_twice(
    rig: Rig, tmp_path: Path, wait_until: Wait
) -> None:
    loop = Loop(rig, tmp_path / "device")
    wanted = entry(tmp_path, DATA)
    loop.downloader.begin([wanted])
    wait_until(lambda: loop.turn() or loop.downloader.poll().done >= 3, what="some chunks are here")
    rig.server.stop(grace_s=0)
    before = loop.downloader.poll().done
    rig.server = DeviceServer(rig.plane.context)
    rig.server.start()
    wait_until(loop.turn, what="the file is here")
    assert 3 <= before <= 21
    assert loop.downloader.verify() == []


def test_a_refusal_reaches_the_downloader(rig: Rig, tmp_path: Path, wait_until: Wait) -> None:
    loop = Loop(rig, tmp_path / "device")
    loop.downloader.begin([entry(tmp_path, b"not in the store")])
    wait_until(lambda: loop.turn() or bool(loop.refused), what="the refusal is here")
    assert b"404" in loop.refused[0]
    assert "refused" in loop.downloader.poll().waits_for
    loop.downloader.stop()


def test_a_file_of_another_size_is_not_taken(rig: Rig, tmp_path: Path, wait_until: Wait) -> None:
    loop = Loop(rig, tmp_path / "device")
    wanted = entry(tmp_path, DATA)
    wanted.size += CHUNK_BYTES
    wanted.chunk_sha256.append(bytes(32))
    loop.downloader.begin([wanted])
    wait_until(lambda: loop.turn() or bool(loop.refused), what="the refusal is here")
    assert b"not 22 chunks" in loop.refused[0]
    assert loop.downloader.poll().done == 0
    loop.downloader.stop()
