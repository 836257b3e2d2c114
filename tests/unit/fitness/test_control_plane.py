"""Certificates through the ingest, and the hint in the desired state of the next device of the kind."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from pathlib import Path

import pytest
import sqlalchemy as sa

from integration.engine.tiny_bundle import SIGNER, TinyRelease, enrol, install
from skerry_contract.signing import DESIRED, Ed25519Verifier
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState
from skerry_contract.v1.fitness_pb2 import FitnessCertificate
from skerry_contract.v1.telemetry_pb2 import UplinkAck, UplinkMessage
from skerry_server.delivery.desired import DesiredPublisher
from skerry_server.fitness.ledger import preferred_variants
from skerry_server.link import ServerLink
from skerry_server.monitoring.ingest import UplinkIngest
from skerry_server.store.tables import Device, Release, Uplink
from skerry_server.tally import Tally
from skerry_server.trust.publisher import Published
from skerry_server.trust.repository import Approved
from unit.fitness.test_certificates import AUTHORITY, PROFILE, Plane


class Link(ServerLink):
    """Always connected; keeps what is published."""

    def __init__(self) -> None:
        super().__init__(host="127.0.0.1", port=1, username="", password="", client_id="recording")
        self.sent: list[tuple[str, bytes]] = []

    @property
    def connected(self) -> bool:
        return True

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        self.sent.append((topic, payload))
        future: Future[None] = Future()
        future.set_result(None)
        return future


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(install(enrol(tmp_path), TinyRelease()))


def send(ingest: UplinkIngest, device_id: str, certificate: FitnessCertificate, sequence: int = 1) -> None:
    message = UplinkMessage(device_id=device_id, outbox_id="o", sequence=sequence, fitness=certificate)
    ingest.receive(device_topic(device_id, DeviceTopic.UP), message.SerializeToString())
    ingest.step()


@pytest.mark.parametrize(
    ("what", "kind", "rows"), [("good", "fitness", 1), ("forged", "rejected", 0), ("no authority", "rejected", 0)]
)
def test_a_certificate_is_acknowledged_and_kept_only_if_its_signature_holds(
    plane: Plane, what: str, kind: str, rows: int
) -> None:
    link = Link()
    ingest = UplinkIngest(
        plane.database, link, Tally(), authority=None if what == "no authority" else lambda: AUTHORITY
    )
    certificate = plane.certificate("device-1")
    if what == "forged":
        certificate.signature = plane.certificate("device-2").signature
    send(ingest, "device-1", certificate)
    assert [list(UplinkAck.FromString(payload).sequences) for _, payload in link.sent] == [[1]]
    with plane.database.reading() as session:
        assert session.scalars(sa.select(Uplink.kind)).all() == [kind]
    assert len(plane.rows()) == rows


def test_the_next_device_of_the_kind_is_told_the_form_and_another_kind_is_not(plane: Plane) -> None:
    for number in (1, 2, 3):
        plane.take(f"device-{number}", plane.certificate(f"device-{number}"))
    envelope = SIGNER.sign("release", b"manifest").SerializeToString()
    with plane.database.transaction() as session:
        session.get_one(Release, "release-one").envelope = envelope
        for name, profile in (("device-4", PROFILE.digest), ("other-kind", "00" * 32)):
            device = session.get(Device, name) or Device(id=name, enrolled_ms=1)
            device.profile_sha256, device.desired_release, device.desired_sequence = profile, "release-one", 1
            session.add(device)

    class Approvals:
        def published(self) -> Published:
            approved = Approved("tiny", "release-one", 1, len(envelope), hashlib.sha256(envelope).hexdigest())
            return Published({"release-one": approved}, frozenset({SIGNER.public_key.hex()}))

    link = Link()
    DesiredPublisher(plane.database, link, SIGNER, Approvals(), preferred=preferred_variants).step()
    told = {}
    for _, payload in link.sent:
        data = Ed25519Verifier([SIGNER.public_key]).verify(DESIRED, SignedEnvelope.FromString(payload))
        state = DesiredState.FromString(data)
        told[state.device_id] = list(state.preferred_variants)
    assert told == {"device-4": ["int8-qdq"], "other-kind": []}
