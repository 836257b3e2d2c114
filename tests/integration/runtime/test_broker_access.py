"""The broker lets each user do what skerry_contract.topics says and nothing else: real mosquitto, real clients."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from integration.runtime.broker_process import ControlPlane, DeviceClient
from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.topics import FROM_DEVICE, DeviceTopic, device_topic
from skerry_server import broker, broker_passwords
from skerry_server.fleet import service

DIGEST = "ab" * 32


def _expect(device: DeviceClient, topic: str, payload: bytes) -> None:
    assert device.received.get(timeout=10) == (topic, payload)


def test_a_device_reads_its_own_topics_and_bulk_and_not_those_of_another(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    control_plane.enroll("device-b")
    for topic_filter in ("skerry/v1/#", "skerry/v1/d/device-b/#", "$SYS/#", "$share/server/skerry/v1/d/+/up"):
        device.subscribe(topic_filter)
    device.subscribe("skerry/v1/d/device-a/#")
    link = control_plane.link()
    link.publish("skerry/v1/d/device-a/desired", b"probe", retain=True).result(10)
    own, broadcast = ("skerry/v1/d/device-a/desired", b"probe"), (f"skerry/v1/bulk/{DIGEST}", b"for everybody")
    received = [device.received.get(timeout=10)]  # every subscription is in force
    for kind in DeviceTopic:
        link.publish(device_topic("device-b", kind), b"secret").result(10)
    link.publish(f"skerry/v1/d/device-b/bulk/{DIGEST}", b"secret").result(10)
    link.publish("skerry/v1/else", b"secret").result(10)
    link.publish(*broadcast).result(10)
    while received[-1] != broadcast:  # delivery is in order: what was published before it comes before it
        received.append(device.received.get(timeout=10))
    assert set(received) == {own, broadcast}
    device.close()


def test_a_device_publishes_its_own_four_topics_and_nothing_else(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    watcher = DeviceClient(
        control_plane.port, "operator", broker.read_password(control_plane.context.layout.operator_password)
    )
    control_plane.wait_until(watcher.try_connected, what="the operator is connected")
    watcher.subscribe("skerry/v1/#")
    link = control_plane.link()
    link.publish("skerry/v1/probe", b"probe", retain=True).result(10)
    _expect(watcher, "skerry/v1/probe", b"probe")
    forbidden = [device_topic("device-a", kind) for kind in DeviceTopic if kind not in FROM_DEVICE]
    forbidden += [device_topic("device-b", kind) for kind in DeviceTopic]
    forbidden += [f"skerry/v1/bulk/{DIGEST}", "skerry/v1/probe", "elsewhere", "skerry/v1/d/device-a/up/more"]
    for topic in forbidden:
        device.publish(topic, b"forged", retain=True)
    allowed = [device_topic("device-a", kind) for kind in sorted(FROM_DEVICE)]
    for topic in allowed:
        device.publish(topic, b"own")
    assert [watcher.received.get(timeout=10) for _ in allowed] == [(topic, b"own") for topic in allowed]
    assert watcher.received.empty()
    # The operator reads everything and writes nothing.
    watcher.publish("skerry/v1/d/device-a/cmd", b"forged")
    link.publish("skerry/v1/probe", b"end").result(10)
    _expect(watcher, "skerry/v1/probe", b"end")
    watcher.close()
    device.close()


@pytest.mark.parametrize(
    ("username", "password"),
    [("device-a", "wrong"), ("device-a", ""), ("nobody", "x"), ("server", "x"), ("", "")],
)
def test_a_wrong_password_and_anonymous_are_refused(control_plane: ControlPlane, username: str, password: str) -> None:
    control_plane.enroll("device-a")
    intruder = DeviceClient(control_plane.port, username, password)
    assert "uthor" in intruder.refused.get(timeout=10)  # "Not authorized"
    assert not intruder.try_connected()
    intruder.close()


def test_a_device_that_enrols_is_known_at_once_and_a_revoked_one_is_cut_off(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    other = control_plane.device("device-b")
    with control_plane.context.database.transaction() as session:
        service.revoke(session, control_plane.context, "device-a", actor="test", reason="lost")
    assert device.disconnects.get(timeout=10)
    assert "uthor" in device.refused.get(timeout=10)
    assert other.try_connected()
    device.close()
    other.close()


def test_the_controller_repairs_what_a_killed_process_left_undone(control_plane: ControlPlane) -> None:
    context = control_plane.context
    password_file = context.layout.broker / "passwords"
    device_password = control_plane.enroll("device-a")
    password_file.write_bytes(b"device-x:$7$101$AAAA$AAAA\n")  # as if the commit had not been followed
    controller = broker.BrokerUsersController(context.database, context.layout)
    controller.step()
    users = broker_passwords.parse(password_file.read_bytes())
    assert sorted(users) == ["device-a", "operator", "server"]
    assert broker_passwords.matches(device_password, users["device-a"])
    before = password_file.stat().st_mtime_ns
    controller.step()
    assert password_file.stat().st_mtime_ns == before
    control_plane.link()


def test_a_message_beyond_the_limit_ends_the_connection_and_reaches_nobody(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    link = control_plane.link()
    device.publish("skerry/v1/d/device-a/up", bytes(MESSAGE_BYTES + 1))
    assert device.disconnects.get(timeout=10)
    assert link.connected
    device.close()


def test_our_hashes_are_what_mosquitto_passwd_makes(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(file), "someone", "geheim"], check=True, capture_output=True)
    users = broker_passwords.parse(file.read_bytes())
    assert broker_passwords.matches("geheim", users["someone"])
    assert not broker_passwords.matches("Geheim", users["someone"])


def test_the_files_are_the_owners_only(control_plane: ControlPlane) -> None:
    folder = control_plane.context.layout.broker
    for name in ("passwords", "access", "mosquitto.conf"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
