"""The controller: what reaches the broker, in which order, after which losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_contract.limits import TRUST_FILE_BYTES
from skerry_contract.signing import RELEASE, Ed25519Verifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_server.config import TrustSettings
from skerry_server.errors import PlatformError
from skerry_server.fleet.service import set_desired
from skerry_server.link import BrokerUnavailableError
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import ChampionEntry, Device, Release
from skerry_server.trust import service
from skerry_server.trust.planning import TrustFileTooLargeError
from unit.trust.plane import Plane


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane.create(tmp_path / "plane")


def want(plane: Plane, device_id: str, release_id: str) -> None:
    with plane.database.transaction() as session:
        set_desired(session, device_id, release_id=release_id)


def sequence(plane: Plane, device_id: str) -> int:
    with plane.database.reading() as session:
        return session.get_one(Device, device_id).desired_sequence


def test_what_is_named_comes_before_what_names_it_and_old_versions_are_cleared(plane: Plane) -> None:
    publisher = plane.publisher()
    assert publisher.published().instruction_keys == frozenset()
    publisher.step()
    plane.add_release("digits", 1)
    publisher.step()
    assert plane.broker.order == [
        *("1.targets.json", "1.snapshot.json", "timestamp.json", "1.root.json", "index"),
        *("1.model-digits.json", "2.targets.json", "2.snapshot.json", "timestamp.json", "index"),
        *("-1.snapshot.json", "-1.targets.json"),
    ]
    assert plane.broker.files() == plane.files()
    assert plane.broker.indexed() == {name: len(data) for name, data in plane.files().items()}
    publisher.step()
    assert len(plane.broker.order) == 12
    published = publisher.published()
    assert published.releases["digits-r1"].version == 1
    assert published.instruction_keys == {load_or_create_key(plane.layout).public_key.hex()}


def test_a_broker_that_lost_everything_gets_everything_again(plane: Plane) -> None:
    publisher = plane.publisher()
    publisher.step()
    plane.broker.reconnect(lose=True)
    assert publisher.published().instruction_keys == frozenset()
    plane.broker.connected = False
    publisher.step()
    assert plane.broker.files() == {}
    plane.broker.connected = True
    publisher.step()
    assert plane.broker.files() == plane.files()
    assert publisher.published().instruction_keys


def test_what_an_earlier_process_left_at_the_broker_is_cleared(plane: Plane) -> None:
    plane.publisher().step()
    plane.broker.retained["skerry/v1/trust/7.model-har.json"] = b"left by a process that was killed"
    plane.broker.retained["skerry/v1/trust/not a name"] = b"not ours"
    publisher = plane.publisher()
    publisher.step()
    assert plane.broker.files().keys() - plane.files().keys() == {"not a name"}


@pytest.mark.parametrize("number", range(1, 7))
def test_a_message_that_is_not_acknowledged_is_raised_and_sent_again(plane: Plane, number: int) -> None:
    publisher = plane.publisher()
    publisher.step()
    plane.add_release("digits", 1)
    plane.broker.refuse_at = number
    if number < 6:
        with pytest.raises(BrokerUnavailableError):
            publisher.step()
        assert "digits-r1" not in publisher.published().releases
    else:  # only an old file is not cleared
        with pytest.raises(BrokerUnavailableError):
            publisher.step()
    publisher.step()
    assert plane.broker.files() == plane.files()
    assert "digits-r1" in publisher.published().releases


def test_too_many_releases_are_reported_and_the_last_good_metadata_published(tmp_path: Path) -> None:
    plane = Plane.create(tmp_path / "plane", settings=TrustSettings.model_construct(releases=2_000))
    task = "t" * 60
    plane.add_release(task, 1)
    publisher = plane.publisher()
    publisher.step()
    for number in range(2, 580):  # about 270 bytes each
        plane.add_release(task, number)
    before = plane.files()
    for _ in range(2):
        plane.broker.reconnect(lose=True)
        with pytest.raises(TrustFileTooLargeError, match=f"more than {TRUST_FILE_BYTES}"):
            publisher.step()
        assert plane.files() == before == plane.broker.files()
    assert len(list(plane.layout.trust_keys.glob("model-*.pem"))) == 1


def test_the_newest_the_champion_and_what_devices_run_are_approved(tmp_path: Path) -> None:
    plane = Plane.create(tmp_path / "plane", settings=TrustSettings(releases=2))
    for number in range(1, 8):
        plane.add_release("digits", number)
    with plane.database.transaction() as session:
        for release_id in ("digits-r4", "digits-r2"):
            session.add(ChampionEntry(task="digits", release_id=release_id, reason="test", at_ms=1))
    plane.add_device("d1", desired_release="digits-r3")
    plane.add_device("d2", desired_release="digits-r1", revoked=True)
    plane.change(Release, "digits-r7", state="withdrawn")
    publisher = plane.publisher()
    publisher.step()
    assert sorted(publisher.published().releases) == ["digits-r2", "digits-r3", "digits-r5", "digits-r6"]


def test_a_row_without_a_signed_envelope_is_not_approved(plane: Plane) -> None:
    plane.add_release("digits", 1, envelope=b"")
    plane.add_release("digits", 2, envelope=b"\xff\xff\xff")
    plane.add_release("digits", 3)
    publisher = plane.publisher()
    publisher.step()
    assert sorted(publisher.published().releases) == ["digits-r3"]


def test_going_back_is_a_new_approval_and_only_where_it_is_needed(plane: Plane) -> None:
    for number in (1, 2, 3):
        plane.add_release("digits", number)
    for device_id in ("d1", "d2", "d3"):
        plane.add_device(device_id, active_release="digits-r2", desired_release="digits-r2")
    versions = {path: version for path, (version, _) in plane.available().items()}
    assert versions == {"digits/digits-r1": 1, "digits/digits-r2": 2, "digits/digits-r3": 3}
    want(plane, "d1", "digits-r3")  # forward
    want(plane, "d2", "digits-r2")  # the same
    assert plane.available()["digits/digits-r2"][0] == 2
    want(plane, "d2", "digits-r1")  # back
    want(plane, "d3", "digits-r1")  # back, and approved anew already
    assert plane.available()["digits/digits-r1"][0] == 4
    plane.change(Device, "d2", active_release="digits-r1")
    want(plane, "d2", "digits-r2")  # forward again: 2 is below what it has
    assert plane.available()["digits/digits-r2"][0] == 5
    plane.change(Release, "digits-r3", state="withdrawn")
    want(plane, "d2", "digits-r3")
    with plane.database.reading() as session:
        assert session.get_one(Release, "digits-r3").approved_version == 3


def test_after_the_rotation_of_instructions_releases_are_signed_again(plane: Plane, tmp_path: Path) -> None:
    plane.add_release("digits", 1)
    plane.add_device("runs", desired_release="digits-r1", active_release="digits-r1", desired_sequence=3)
    plane.add_device("waits", desired_release="digits-r1", active_release="", desired_sequence=3)
    publisher = plane.publisher()
    publisher.step()
    device = plane.device(tmp_path / "device")
    plane.check(device, plane.broker.files())
    old = load_or_create_key(plane.layout).public_key
    service.rotate(plane.layout, plane.settings, "instructions", clock=plane.clock)
    new = load_or_create_key(plane.layout).public_key
    assert new != old
    publisher.step()
    plane.check(device, plane.broker.files())
    assert device.targets(plane.broker.files(), ["keys"], now=plane.now)["keys"].custom == {
        "instruction_keys": [new.hex()]
    }
    envelope = SignedEnvelope.FromString(plane.available()["digits/digits-r1"][1])
    assert Ed25519Verifier([new]).verify(RELEASE, envelope) == b"manifest of digits-r1"
    assert (sequence(plane, "runs"), sequence(plane, "waits")) == (3, 4)
    publisher.step()
    assert sequence(plane, "waits") == 4


def test_metadata_are_signed_again_in_time_and_the_root_too_while_its_keys_are_here(plane: Plane) -> None:
    publisher = plane.publisher()
    publisher.step()
    plane.wait(hours=15)
    publisher.step()
    assert len(plane.broker.order) == 5
    plane.wait(hours=1)
    publisher.step()
    assert plane.broker.order[5:] == ["timestamp.json", "index"]
    plane.wait(days=243)
    assert service.status(plane.layout, plane.settings, clock=plane.clock).broken
    publisher.step()
    status = service.status(plane.layout, plane.settings, clock=plane.clock)
    assert not status.broken
    assert status.roles[0].version == 2
    for path in plane.layout.trust_keys.glob("root.*.pem"):
        path.unlink()
    plane.wait(days=244)
    publisher.step()
    status = service.status(plane.layout, plane.settings, clock=plane.clock)
    assert status.roles[0].version == 2
    assert [warning for warning in status.warnings if "skerry keys renew" in warning]


def test_a_lost_key_is_reported_until_it_is_rotated(plane: Plane, tmp_path: Path) -> None:
    publisher = plane.publisher()
    publisher.step()
    device = plane.device(tmp_path / "device")
    device.refresh(plane.broker.files(), now=plane.now)
    next(plane.layout.trust_keys.glob("snapshot.*.pem")).unlink()
    plane.add_release("digits", 1)
    with pytest.raises(PlatformError, match="skerry keys rotate snapshot"):
        publisher.step()
    assert service.status(plane.layout, plane.settings, clock=plane.clock).broken
    service.rotate(plane.layout, plane.settings, "snapshot", clock=plane.clock)
    publisher.step()
    plane.check(device, plane.broker.files())
