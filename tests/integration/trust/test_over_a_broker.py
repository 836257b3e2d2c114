"""Signed metadata through a real broker: what a device reads there verifies, after rotations and after losses too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from integration.runtime.broker_process import ControlPlane, DeviceClient
from skerry_contract.signing import RELEASE
from skerry_contract.topics import TRUST_FILTER, parse_topic
from skerry_contract.v1.release_pb2 import TrustIndex
from skerry_server.api.app import create_app
from skerry_server.cli.main import main
from skerry_server.clock import now_ms
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import Release
from skerry_server.trust.publisher import TrustPublisher
from skerry_server.trust.service import current_root
from unit.trust.tuf_device import TufDevice


def _publisher(plane: ControlPlane) -> TrustPublisher:
    context = plane.context
    publisher = TrustPublisher(context.database, plane.link(), context.layout, context.config.trust, context.signer)
    publisher.start()
    return publisher


def _add_release(plane: ControlPlane, number: int) -> None:
    with plane.context.database.transaction() as session:
        session.add(
            Release(
                id=f"digits-r{number}",
                task="digits",
                sequence=number,
                candidate_id="c",
                origin="central",
                bundle_sha256="00" * 32,
                envelope=plane.context.signer.sign(RELEASE, b"manifest").SerializeToString(),
                approved_version=number,
                created_ms=now_ms(),
            )
        )


class Reader:
    """A device's control connection, and the retained files that it has been given."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._client: DeviceClient = plane.device("d1")
        self._client.subscribe(TRUST_FILTER)
        self.files: dict[str, bytes] = {}
        self.index: dict[str, int] = {}

    def begin_again(self) -> None:
        """Forget everything and read what the broker keeps, once the connection stands again."""
        self._client.disconnects.get(timeout=30)
        self._plane.wait_until(self._client.try_connected, what="the device is connected")
        self.files.clear()
        self.index.clear()
        self._client.subscribe(TRUST_FILTER)

    def complete(self) -> dict[str, bytes]:
        """The files, once they are what the index says."""
        self._plane.wait_until(self.is_complete, what="the device has what the index names")
        return dict(self.files)

    def is_complete(self) -> bool:
        """Take in what has come; whether that is what the index says."""
        while not self._client.received.empty():
            topic, payload = self._client.received.get()
            name = parse_topic(topic).trust_name
            assert name is not None
            if name == "index":
                self.index = {file.name: file.size for file in TrustIndex.FromString(payload).files}
            elif payload:
                self.files[name] = payload
            else:
                self.files.pop(name, None)
        return bool(self.index) and {name: len(data) for name, data in self.files.items()} == self.index

    def close(self) -> None:
        self._client.close()


def test_a_device_verifies_what_the_broker_keeps(control_plane: ControlPlane, tmp_path: Path) -> None:
    publisher = _publisher(control_plane)
    publisher.step()
    device = TufDevice(tmp_path / "device", current_root(control_plane.context.layout))
    reader = Reader(control_plane)
    assert device.targets(reader.complete(), ["keys"])["keys"].custom == {
        "instruction_keys": [load_or_create_key(control_plane.context.layout).public_key.hex()]
    }
    _add_release(control_plane, 1)
    publisher.step()
    assert device.targets(reader.complete(), ["digits/digits-r1"])["digits/digits-r1"].custom == {"version": 1}
    # People rotate keys on the command line while everything runs.
    folder = ["--data-dir", str(control_plane.context.layout.root)]
    for number, role in enumerate(("timestamp", "targets", "root"), start=2):
        assert main(["keys", "rotate", role, *folder]) == 0
        _add_release(control_plane, number)
        publisher.step()
        files = reader.complete()
        assert f"{number}.root.json" in files
        assert sorted(device.targets(files, [f"digits/digits-r{n}" for n in range(1, 9)])) == [
            f"digits/digits-r{n}" for n in range(1, number + 1)
        ]
    control_plane.kill_broker()
    control_plane.wait_until(lambda: not publisher.published().releases, what="the loss is noticed")
    for file in control_plane.context.layout.broker.glob("mosquitto.db*"):
        file.unlink()
    control_plane.start_broker()

    def published() -> bool:
        publisher.step()
        return bool(publisher.published().releases)

    control_plane.wait_until(published, what="it is published again")
    reader.begin_again()
    assert device.targets(reader.complete(), ["digits/digits-r4"])
    reader.close()


def test_what_a_killed_process_left_is_cleared(control_plane: ControlPlane) -> None:
    _publisher(control_plane).step()
    left = control_plane.user("server")
    message = left.publish("skerry/v1/trust/9.model-har.json", b"left", retain=True)
    control_plane.wait_until(lambda: message in left.acknowledged, what="the broker has it")
    publisher = _publisher(control_plane)  # another process
    reader = Reader(control_plane)

    def cleared() -> bool:
        publisher.step()
        return reader.is_complete() and "9.model-har.json" not in reader.files

    control_plane.wait_until(cleared, what="it is cleared")
    left.close()
    reader.close()


def test_status_on_the_command_line_and_over_the_api_say_the_same(
    control_plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(control_plane.context.layout.root)
    token = control_plane.context.layout.admin_token.read_text().strip()
    with TestClient(create_app(control_plane.context)) as client:
        assert client.get("/v1/trust").status_code == 401
        answer = client.get("/v1/trust", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert main(["keys", "status", "--json", "--data-dir", folder]) == 0
    assert json.loads(capsys.readouterr().out) == answer.json()
    assert [role["role"] for role in answer.json()["roles"]] == [
        "root",
        "targets",
        "snapshot",
        "timestamp",
        "instructions",
    ]
    assert "root keys lie on this disk" in answer.json()["warnings"][0]
