"""The broker lets each user do what skerry_contract.topics says and nothing else: real mosquitto, real certificates."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from integration.runtime.broker_process import ControlPlane, DeviceClient
from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.topics import FROM_DEVICE, DeviceTopic, device_topic
from skerry_server import broker_passwords
from skerry_server.link import ServerLink

DIGEST = "ab" * 32


def _until_marked(device: DeviceClient, link: ServerLink, topic: str) -> set[tuple[str, bytes]]:
    """What the device received until a message published last arrived: delivery is in order."""
    link.publish(topic, b"mark").result(10)
    received: set[tuple[str, bytes]] = set()
    while (message := device.received.get(timeout=10)) != (topic, b"mark"):
        received.add(message)
    return received


def test_a_device_reads_its_own_topics_and_those_for_all_and_not_those_of_another(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    data = DeviceClient.of(control_plane.data_port, control_plane.identity_of("device-a"))
    control_plane.wait_until(data.try_connected, what="the data connection stands")
    for client in (device, data):
        for topic_filter in ("skerry/v1/#", "skerry/v1/d/device-b/#", "$SYS/#", "$share/server/skerry/v1/d/+/up"):
            client.subscribe(topic_filter)
    device.subscribe("skerry/v1/d/device-a/#")
    device.subscribe("skerry/v1/trust/+")
    data.subscribe("skerry/v1/d/CN=device-a/bulk/+")
    data.subscribe("skerry/v1/bulk/+")
    link = control_plane.link()
    own = ("skerry/v1/d/device-a/desired", b"own")
    trust = ("skerry/v1/trust/timestamp.json", b"for all")
    unicast, broadcast = (f"skerry/v1/d/CN=device-a/bulk/{DIGEST}", b"own"), (f"skerry/v1/bulk/{DIGEST}", b"for all")
    for message in (own, trust):
        link.publish(*message, retain=True).result(10)
    seen: set[tuple[str, bytes]] = set()
    while seen != {own, trust, unicast}:  # from here on every subscription is in force
        link.publish(*unicast).result(10)
        seen |= {data.received.get(timeout=10)}
        seen |= {device.received.get(timeout=10)} if not {own, trust} <= seen else set()
    for kind in DeviceTopic:
        link.publish(device_topic("device-b", kind), b"secret").result(10)
    for other in (f"d/CN=device-b/bulk/{DIGEST}", f"d/device-b/bulk/{DIGEST}", "else", "d/device-b"):
        link.publish(f"skerry/v1/{other}", b"secret").result(10)
    link.publish(*broadcast).result(10)
    link.publish("skerry/v1/d/device-a/cmd", b"own").result(10)
    # Once more at the most what had come already: subscriptions overlap.
    assert _until_marked(data, link, broadcast[0]) - {unicast} == {broadcast}
    assert _until_marked(device, link, own[0]) - {own, trust} == {("skerry/v1/d/device-a/cmd", b"own")}
    for client in (device, data):
        client.close()


def test_a_device_publishes_its_own_four_topics_and_nothing_else(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    data = DeviceClient.of(control_plane.data_port, control_plane.identity_of("device-a"))
    control_plane.wait_until(data.try_connected, what="the data connection stands")
    watcher = control_plane.user("operator")
    watcher.subscribe("skerry/v1/#")
    link = control_plane.link()
    link.publish("skerry/v1/probe", b"probe", retain=True).result(10)
    assert watcher.received.get(timeout=10) == ("skerry/v1/probe", b"probe")
    forbidden = [device_topic("device-a", kind) for kind in DeviceTopic if kind not in FROM_DEVICE]
    forbidden += [device_topic("device-b", kind) for kind in DeviceTopic]
    forbidden += [f"skerry/v1/bulk/{DIGEST}", f"skerry/v1/d/CN=device-a/bulk/{DIGEST}", "skerry/v1/trust/root.json"]
    forbidden += ["skerry/v1/trust/index", "skerry/v1/probe", "elsewhere", "skerry/v1/d/device-a/up/more"]
    allowed = [device_topic("device-a", kind) for kind in sorted(FROM_DEVICE)]
    refused = [(device, device.publish(topic, b"forged", retain=True)) for topic in forbidden]
    refused += [(data, data.publish(topic, b"forged", retain=True)) for topic in [*forbidden, *allowed]]
    for client, mid in refused:
        control_plane.wait_until(lambda c=client, m=mid: m in c.acknowledged, what="the answer to a publication")
        assert client.acknowledged[mid] == "Not authorized"
    for topic in allowed:
        device.publish(topic, b"own")
    assert [watcher.received.get(timeout=10) for _ in allowed] == [(topic, b"own") for topic in allowed]
    # The operator reads everything and writes nothing.
    watcher.publish("skerry/v1/d/device-a/cmd", b"forged")
    link.publish("skerry/v1/probe", b"end").result(10)
    assert watcher.received.get(timeout=10) == ("skerry/v1/probe", b"end")
    for client in (device, data, watcher):
        client.close()


def test_nobody_forges_the_presence_of_another_device(control_plane: ControlPlane) -> None:
    presence = device_topic("device-a", DeviceTopic.PRESENCE)
    victim_identity = control_plane.enroll("device-a")
    intruder_identity = control_plane.enroll("device-b")
    victim = DeviceClient.of(control_plane.control_port, victim_identity, will=(presence, b"gone"))
    victim_data = DeviceClient.of(control_plane.data_port, victim_identity)
    control_plane.wait_until(lambda: victim.try_connected() and victim_data.try_connected(), what="the victim is there")
    watcher = control_plane.user("operator")
    watcher.subscribe("skerry/v1/#")
    link = control_plane.link()
    link.publish("skerry/v1/probe", b"probe", retain=True).result(10)
    assert watcher.received.get(timeout=10) == ("skerry/v1/probe", b"probe")
    # Under the victim's client identifiers, on both listeners, and with a last will that speaks for the victim.
    for port in (control_plane.control_port, control_plane.data_port):
        for client_id in ("device-a", "CN=device-a"):
            will = (presence, b"forged")
            intruder = DeviceClient.of(port, intruder_identity, client_id=client_id, will=will)
            control_plane.wait_until(intruder.try_connected, what="the intruder is connected, as itself")
            intruder.drop()
    again = DeviceClient.of(control_plane.control_port, intruder_identity)  # so the wills above were due before
    control_plane.wait_until(again.try_connected, what="the intruder is connected again")
    link.publish("skerry/v1/probe", b"end").result(10)
    assert watcher.received.get(timeout=10) == ("skerry/v1/probe", b"end")  # nothing of the victim's in between
    assert victim.try_connected()
    assert victim_data.try_connected()
    assert victim.disconnects.empty()
    assert victim_data.disconnects.empty()
    # Its own last will does speak for it.
    victim.drop()
    assert watcher.received.get(timeout=10) == (presence, b"gone")
    for client in (victim_data, again, watcher):
        client.close()


def test_a_wrong_password_and_anonymous_are_refused_and_devices_too(control_plane: ControlPlane) -> None:
    control_plane.enroll("device-a")
    for username, password in [("device-a", "x"), ("CN=device-a", ""), ("nobody", "x"), ("server", "x"), ("", "")]:
        intruder = DeviceClient(control_plane.port, username, password)
        assert "uthor" in intruder.refused.get(timeout=10)  # "Not authorized"
        assert not intruder.try_connected()
        intruder.close()


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
    layout = control_plane.context.layout
    names = ("passwords", "access-plain", "access-control", "access-data", "mosquitto.conf")
    for path in [*(layout.broker / name for name in names), layout.pki / "ca.key", layout.server_key]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(layout.pki.stat().st_mode) == 0o700
