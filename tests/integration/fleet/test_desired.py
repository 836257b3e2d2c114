"""Desired and reported state through a real broker, real signatures and a broker that dies."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from integration.runtime.broker_process import ControlPlane, DeviceClient
from skerry_contract.signing import DESIRED, RELEASE, Ed25519Verifier
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState, Presence, ReportedState, UpdateStatus
from skerry_server.clock import now_ms
from skerry_server.delivery.desired import DesiredPublisher
from skerry_server.fleet import service
from skerry_server.fleet.reported import DeviceStateListener
from skerry_server.link import BrokerUnavailableError, ServerLink
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import Device, Release
from skerry_server.tally import Tally
from skerry_server.trust import service as trust
from skerry_server.trust.publisher import TrustPublisher


@dataclass(frozen=True)
class Publishers:
    """Signed metadata and desired states over one link, as the runtime has them."""

    link: ServerLink
    trust: TrustPublisher
    desired: DesiredPublisher

    def step(self) -> None:
        self.trust.step()
        self.desired.step()


def _publisher(plane: ControlPlane) -> Publishers:
    context, link = plane.context, plane.link()
    trust = TrustPublisher(context.database, link, context.layout, context.config.trust, context.signer)
    desired = DesiredPublisher(context.database, link, context.signer, trust)
    trust.start()
    desired.start()
    return Publishers(link, trust, desired)


def _want(plane: ControlPlane, device_id: str, release_id: str) -> int:
    with plane.context.database.transaction() as session:
        return service.set_desired(session, device_id, release_id=release_id, rollout_id="rollout-1", probation_ms=900)


def _add_release(plane: ControlPlane, release_id: str, *, sequence: int = 1) -> bytes:
    envelope = plane.context.signer.sign(RELEASE, b"manifest of " + release_id.encode()).SerializeToString()
    with plane.context.database.transaction() as session:
        session.add(
            Release(
                id=release_id,
                task="digits",
                sequence=sequence,
                candidate_id="c",
                origin="central",
                bundle_sha256="00" * 32,
                envelope=envelope,
                approved_version=sequence,
                metrics={},
                created_ms=now_ms(),
            )
        )
    return envelope


def _column(plane: ControlPlane, device_id: str, name: str) -> Any:
    with plane.context.database.reading() as session:
        return getattr(session.get_one(Device, device_id), name)


def _received(plane: ControlPlane, device: DeviceClient) -> DesiredState:
    verifier = Ed25519Verifier([load_or_create_key(plane.context.layout).public_key])
    _, payload = device.received.get(timeout=15)
    return DesiredState.FromString(verifier.verify(DESIRED, SignedEnvelope.FromString(payload)))


def test_desired_state_arrives_signed_and_retained_with_the_release_inside(control_plane: ControlPlane) -> None:
    envelope = _add_release(control_plane, "release-1")
    device = control_plane.device("d1")
    publisher = _publisher(control_plane)
    sequence = _want(control_plane, "d1", "release-1")
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == sequence
    device.subscribe(device_topic("d1", DeviceTopic.DESIRED))  # only now: it is retained
    state = _received(control_plane, device)
    assert (state.device_id, state.sequence, state.rollout_id, state.probation_ms) == ("d1", 1, "rollout-1", 900)
    assert state.release.SerializeToString() == envelope
    assert (state.reporting.window_requests, state.reporting.health_period_ms) == (0, 0)
    publisher.step()
    _want(control_plane, "d1", "")
    publisher.step()
    state = _received(control_plane, device)  # the next message, so nothing was sent in between
    assert state.sequence == 2
    assert not state.HasField("release")
    device.close()


def test_a_broker_that_lost_everything_gets_everything_again(control_plane: ControlPlane) -> None:
    _add_release(control_plane, "release-1")
    device = control_plane.device("d1")
    publisher = _publisher(control_plane)
    _want(control_plane, "d1", "release-1")
    publisher.step()
    control_plane.kill_broker()
    control_plane.wait_until(lambda: not publisher.link.connected, what="the loss is noticed")
    _want(control_plane, "d1", "release-1")
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == 1
    for file in control_plane.context.layout.broker.glob("mosquitto.db*"):
        file.unlink()
    control_plane.start_broker()
    control_plane.wait_until(lambda: publisher.link.connected, what="the link is back")

    def published() -> bool:
        publisher.step()
        return bool(_column(control_plane, "d1", "published_sequence") == 2)

    control_plane.wait_until(published, what="it is published again")
    control_plane.wait_until(device.try_connected, what="the device is back")
    device.subscribe(device_topic("d1", DeviceTopic.DESIRED))
    assert _received(control_plane, device).sequence == 2
    device.close()


def test_a_release_that_is_not_there_holds_up_only_its_device(control_plane: ControlPlane) -> None:
    _add_release(control_plane, "release-1")
    for device_id in ("d1", "d2"):
        control_plane.enroll(device_id)
    publisher = _publisher(control_plane)
    _want(control_plane, "d1", "release-9")
    _want(control_plane, "d2", "release-1")
    publisher.step()
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == 0
    assert _column(control_plane, "d2", "published_sequence") == 1
    assert publisher.desired.waits() == ["1 devices wait for release release-9: there is no such release"]
    _want(control_plane, "d1", "release-1")
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == 2


def test_nothing_is_wanted_before_the_metadata_that_approve_it_are_published(control_plane: ControlPlane) -> None:
    _add_release(control_plane, "release-1")
    control_plane.enroll("d1")
    publisher = _publisher(control_plane)
    sequence = _want(control_plane, "d1", "release-1")
    publisher.desired.step()
    assert publisher.desired.waits() == [
        "every desired state waits: the signed metadata that list its key are not published yet"
    ]
    publisher.trust.step()
    publisher.desired.step()
    assert (_column(control_plane, "d1", "published_sequence"), publisher.desired.waits()) == (sequence, [])
    # A release that nobody has heard of yet, and one that is approved anew under a higher number.
    _add_release(control_plane, "release-2", sequence=2)
    sequence = _want(control_plane, "d1", "release-2")
    publisher.desired.step()
    assert publisher.desired.waits() == [
        "1 devices wait for release release-2: the signed metadata that approve it are not published yet"
    ]
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == sequence
    sequence = _want(control_plane, "d1", "release-1")
    publisher.desired.step()
    assert _column(control_plane, "d1", "published_sequence") == sequence - 1
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == sequence
    assert publisher.trust.published().releases["release-1"].version == 3
    # A withdrawn one is never sent.
    with control_plane.context.database.transaction() as session:
        session.get_one(Release, "release-2").state = "withdrawn"
    _want(control_plane, "d1", "release-2")
    publisher.step()
    assert publisher.desired.waits() == ["1 devices wait for release release-2: it is withdrawn"]


def test_a_new_key_of_instructions_is_listed_before_it_signs(control_plane: ControlPlane) -> None:
    _add_release(control_plane, "release-1")
    device = control_plane.device("d1")
    publisher = _publisher(control_plane)
    _want(control_plane, "d1", "release-1")
    publisher.step()
    device.subscribe(device_topic("d1", DeviceTopic.DESIRED))
    assert _received(control_plane, device).sequence == 1
    trust.rotate(control_plane.context.layout, control_plane.context.config.trust, "instructions")
    publisher.desired.step()
    assert "every desired state waits" in publisher.desired.waits()[0]
    publisher.step()
    state = _received(control_plane, device)  # verified with the new key
    assert state.sequence == 2  # the device had not installed the release under its old signature
    new = Ed25519Verifier([load_or_create_key(control_plane.context.layout).public_key])
    assert new.verify(RELEASE, state.release) == b"manifest of release-1"
    device.close()


def test_a_loss_while_publishing_is_raised_and_repeated(control_plane: ControlPlane) -> None:
    _add_release(control_plane, "release-1")
    control_plane.enroll("d1")
    publisher = _publisher(control_plane)
    publisher.step()
    link = publisher.link
    assert control_plane.child is not None
    os.kill(control_plane.child.pid, signal.SIGSTOP)  # it acknowledges nothing any more
    _want(control_plane, "d1", "release-1")
    with ThreadPoolExecutor() as pool:
        step = pool.submit(publisher.step)
        control_plane.wait_until(lambda: link._pending, what="the message waits for its acknowledgement")
        control_plane.kill_broker()
        with pytest.raises(BrokerUnavailableError):
            step.result(20)
    assert _column(control_plane, "d1", "published_sequence") == 0
    control_plane.start_broker()
    control_plane.wait_until(lambda: link.connected, what="the link is back")
    publisher.step()
    assert _column(control_plane, "d1", "published_sequence") == 1


def test_reported_state_and_presence_reach_a_control_plane_that_was_away(control_plane: ControlPlane) -> None:
    device = control_plane.device("d1")
    reported = ReportedState(
        device_id="d1", boot_id="b1", revision=2, update_status=UpdateStatus.UPDATE_STATUS_IDLE, labelled_samples=5
    )
    presence = Presence(device_id="d1", online=True, boot_id="b1")
    device.publish(device_topic("d1", DeviceTopic.PRESENCE), presence.SerializeToString(), retain=True)
    last = device.publish(device_topic("d1", DeviceTopic.REPORTED), reported.SerializeToString(), retain=True)
    control_plane.wait_until(lambda: last in device.acknowledged, what="the broker has both")
    tally = Tally()
    listener = DeviceStateListener(control_plane.context.database, control_plane.link(), tally)
    listener.start()  # only now: both are retained
    control_plane.wait_until(lambda: _column(control_plane, "d1", "online"), what="presence is stored")
    control_plane.wait_until(
        lambda: _column(control_plane, "d1", "labelled_samples") == 5, what="reported state is stored"
    )
    device.publish(device_topic("d1", DeviceTopic.REPORTED), b"\xff\xff")
    control_plane.wait_until(lambda: tally.counts().get("reported-refused") == 1, what="rubbish is refused")
    listener.step()
    presence.online = False
    device.publish(device_topic("d1", DeviceTopic.PRESENCE), presence.SerializeToString(), retain=True)
    control_plane.wait_until(lambda: not _column(control_plane, "d1", "online"), what="its leaving is stored")
    device.close()
