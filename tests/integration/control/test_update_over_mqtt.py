"""The whole way of a release to devices: real mosquitto, real link and chunk server, real control loop."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.control.control_plane import ControlPlane
from integration.control.device import Device, enrolled
from integration.link.broker import Broker
from skerry_agent.control.process import run
from skerry_agent.errors import DeviceError
from skerry_agent.link.outbox import Outbox
from skerry_agent.policy.reporting import WindowPolicy, read_window_policy
from skerry_agent.update.slots import MANIFEST, read_pointer, slot_folder
from skerry_contract.v1 import device_pb2
from skerry_contract.v1.device_pb2 import ReportingPolicy
from skerry_contract.v1.telemetry_pb2 import CampaignInvitation, Command, LabelReport, UplinkMessage
from unit.update.releases import DEVICE, make_desired, make_release, new_signer

Wait = Callable[..., None]


@pytest.fixture
def plane(broker: Broker) -> Iterator[ControlPlane]:
    running = ControlPlane(broker.port, {})
    running.start()
    yield running
    running.stop()


def holds_exactly(device: Device, files: dict[str, bytes]) -> bool:
    pointer = read_pointer(device.layout)
    assert pointer is not None
    folder = slot_folder(device.layout, pointer.slot)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST)
    return found == files


def committed(plane: ControlPlane, release_id: str, device_id: str = DEVICE) -> Callable[[], bool]:
    def check() -> bool:
        state = plane.reported(device_id)
        return (
            state.active_release == release_id
            and state.update_status == device_pb2.UPDATE_STATUS_COMMITTED
            and state.target_release == release_id
        )

    return check


def test_a_release_arrives_is_proved_and_committed(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1")
    plane.artifacts.blobs |= release.by_digest
    device = Device(enrolled(short_dir / "d", broker, labels={"site": "north"}))
    device.start()
    try:
        wait_until(plane.online, what="presence")
        reporting = ReportingPolicy(window_requests=40, window_ms=1_500)
        plane.desire(make_desired(1, release, rollout_id="rollout-7", reporting=reporting))
        wait_until(committed(plane, "digits-1"), what="commit")
        state = plane.reported()
        assert state.rollout_id == "rollout-7"
        assert state.desired_sequence == 1
        assert dict(state.labels) == {"site": "north"}
        assert holds_exactly(device, release.files)
        assert device.serving.activated == ["digits-1"]
        assert read_window_policy(device.layout) == WindowPolicy(40, 1_500)

        def transitions() -> list[str]:
            return [m.update.to_state for m in plane.uplinks() if m.WhichOneof("body") == "update"]

        wait_until(lambda: "committed" in transitions(), what="update events")
        assert list(dict.fromkeys(transitions())) == [
            "need",
            "downloading",
            "verifying",
            "staging",
            "proving",
            "activating",
            "probation",
            "committed",
        ]
        assert not list((device.layout.update / "downloads").iterdir())
    finally:
        device.stop()
    wait_until(lambda: plane.online() is False, what="the device says goodbye")
    assert device.failure is None


def test_two_devices_are_served_by_one_broadcast(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1", files={"infer.onnx": random.Random(1).randbytes(60 * 1024)})
    plane.artifacts.blobs |= release.by_digest
    names = ("press-01", "press-02", "press-03")
    devices = [Device(enrolled(short_dir / name, broker, name)) for name in names]
    for device in devices:
        device.start()
    try:
        wait_until(lambda: all(plane.online(name) for name in names), what="presence")
        plane.metadata.approve(release.envelope)
        for name in names:
            plane.desire(make_desired(1, release, device_id=name), name)
        for name in names:
            wait_until(committed(plane, "digits-1", name), what=f"commit of {name}")
        for device in devices:
            assert holds_exactly(device, release.files)
    finally:
        for device in devices:
            device.stop()
    counters = plane.chunks.counters
    sent = counters.broadcasts + counters.unicasts
    assert counters.broadcasts > 0
    assert sent < 2 * 60, f"{sent} messages for 60 chunks and three devices"


def test_the_broker_is_killed_in_the_middle_of_a_transfer(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1", files={"infer.onnx": random.Random(2).randbytes(120 * 1024)})
    plane.artifacts.blobs |= release.by_digest
    plane.artifacts.hold_after = 50
    device = Device(enrolled(short_dir / "d", broker))
    device.start()
    try:
        wait_until(plane.online, what="presence")
        plane.desire(make_desired(1, release))
        wait_until(lambda: plane.reported().chunks_done >= 40, what="the middle of the transfer")
        broker.kill()
        plane.artifacts.release.set()
        device.stop()
        had = sum((device.layout.update / "downloads").glob("*.map").__next__().read_bytes())
        assert 40 <= had < 120
        broker.start()
        wait_until(lambda: plane.link.connected, what="the control plane is back")
        before = len(plane.artifacts.reads)
        device.start()
        plane.desire(make_desired(1, release))
        wait_until(committed(plane, "digits-1"), what="commit")
        assert holds_exactly(device, release.files)
        assert len(plane.artifacts.reads) - before < 120, "what was on disk was not sent again"
    finally:
        device.stop()


def test_wrong_chunks_are_dropped_and_the_right_ones_arrive(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1")
    digest = release.manifest.files[0].sha256.hex()
    plane.artifacts.blobs |= release.by_digest
    plane.artifacts.corrupt = {(digest, 1), (digest, 3)}
    device = Device(enrolled(short_dir / "d", broker))
    device.start()
    try:
        plane.desire(make_desired(1, release))
        wait_until(lambda: plane.artifacts.reads.count((digest, 1)) >= 2, what="the device asks again")
        assert plane.reported().update_status == device_pb2.UPDATE_STATUS_DOWNLOADING
        assert read_pointer(device.layout) is None
        plane.artifacts.corrupt = set()
        wait_until(committed(plane, "digits-1"), what="commit")
        assert holds_exactly(device, release.files)
    finally:
        device.stop()


def test_a_release_that_fails_on_the_device_goes_back_and_says_so(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    good, bad = make_release("digits-1"), make_release("digits-2")
    plane.artifacts.blobs |= good.by_digest | bad.by_digest
    device = Device(enrolled(short_dir / "d", broker))
    device.serving.failing.add("digits-2")
    device.start()
    try:
        plane.desire(make_desired(1, good))
        wait_until(committed(plane, "digits-1"), what="commit")
        plane.desire(make_desired(2, bad, rollout_id="rollout-2", probation_ms=60_000))
        wait_until(
            lambda: (
                plane.reported().update_status == device_pb2.UPDATE_STATUS_ROLLED_BACK
                and plane.reported().active_release == "digits-1"
            ),
            what="rolled back",
        )
        assert "requests failed" in plane.reported().update_detail
        assert plane.reported().rollout_id == "rollout-2"
        assert holds_exactly(device, good.files)
        assert device.serving.activated == ["digits-1", "digits-2", "digits-1"]
    finally:
        device.stop()


def test_a_file_that_the_store_does_not_have_is_refused_and_waited_for(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1")
    device = Device(enrolled(short_dir / "d", broker))
    device.start()
    try:
        plane.desire(make_desired(1, release))
        wait_until(lambda: "control plane refused file" in plane.reported().update_detail, what="refusal")
        assert plane.reported().update_status == device_pb2.UPDATE_STATUS_DOWNLOADING
        assert read_pointer(device.layout) is None
    finally:
        device.stop()


def test_a_bad_desired_state_is_told_and_nothing_changes(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1")
    plane.artifacts.blobs |= release.by_digest
    device = Device(enrolled(short_dir / "d", broker))
    device.start()
    try:
        plane.desire(make_desired(1, release, signer=new_signer()))
        wait_until(lambda: "no signature of a trusted key" in plane.reported().update_detail, what="refusal")
        assert plane.reported().desired_sequence == 0
        assert plane.reported().update_status == device_pb2.UPDATE_STATUS_IDLE
        plane.desire(make_desired(1, release))
        wait_until(committed(plane, "digits-1"), what="commit")
    finally:
        device.stop()


def test_what_is_not_acknowledged_is_kept_over_a_dead_broker_and_sent_again(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    plane.acknowledging = False
    device = Device(enrolled(short_dir / "d", broker, health_seconds=0.5))
    outbox = Outbox(device.layout.outbox, device_id=DEVICE, message_limit=1000, byte_limit=1 << 20)
    numbers = [outbox.enqueue(UplinkMessage(label=LabelReport(labelled=count))) for count in range(5)]
    device.start()
    try:
        wait_until(lambda: {message.sequence for message in plane.uplinks()} >= set(numbers), what="sent")
        assert [message.sequence for message in outbox.pending(5)] == numbers, "sent is not delivered"
        broker.kill()
        later = outbox.enqueue(UplinkMessage(label=LabelReport(labelled=99)))
        plane.acknowledging = True
        broker.start()
        wait_until(
            lambda: not {message.sequence for message in outbox.pending(100)} & {*numbers, later}, what="acknowledged"
        )
        seen = [message.sequence for message in plane.uplinks()]
        assert all(seen.count(number) >= 2 for number in numbers)
        assert seen.count(later) >= 1
        wait_until(lambda: any(message.HasField("health") for message in plane.uplinks()), what="a health report")
    finally:
        device.stop()


def test_an_instruction_sent_while_the_device_was_away_is_followed(
    plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    release = make_release("digits-1")
    plane.artifacts.blobs |= release.by_digest
    device = Device(enrolled(short_dir / "d", broker))
    device.start()
    wait_until(plane.online, what="presence")
    device.stop()
    wait_until(lambda: plane.online() is False, what="goodbye")
    plane.desire(make_desired(1, release))
    campaign = CampaignInvitation(campaign_id="campaign-1", task="digits", release_id="x", minimum_samples=10_000)
    plane.link.publish(
        "skerry/v1/d/press-07/cmd", Command(command_id="c1", invitation=campaign).SerializeToString()
    ).result(timeout=10)
    device.start()
    try:
        wait_until(committed(plane, "digits-1"), what="commit")

        def answers() -> list[tuple[bool, str]]:
            found = [message.campaign for message in plane.uplinks() if message.WhichOneof("body") == "campaign"]
            return [(answer.accepted, answer.reason) for answer in found]

        wait_until(answers, what="an answer to the invitation that the broker kept")
        assert set(answers()) == {(False, "0 labelled samples, 10000 are needed")}
    finally:
        device.stop()


@pytest.mark.parametrize("key", ["zz" * 32, "ab" * 31])
def test_a_broken_release_key_is_a_clear_error(short_dir: Path, key: str) -> None:
    layout = enrolled(short_dir / "d", None, release_keys=[key])
    with pytest.raises(DeviceError, match=r"release_keys: .*enrol the device again"):
        run(layout.root, stop=threading.Event())
    assert not layout.outbox.exists()
