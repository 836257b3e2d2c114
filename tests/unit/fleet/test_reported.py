"""ReportedState and Presence into the store: what counts, what is stale, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skerry_contract.errors import WireError
from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.v1.device_pb2 import Presence, ReportedState, UpdateStatus
from skerry_server.fleet.reported import Outcome, apply_presence, apply_reported, sweep_absent
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Device


@pytest.fixture
def database() -> Database:
    made = Database("sqlite://")
    Base.metadata.create_all(made.engine)
    with made.transaction() as session:
        session.add(Device(id="d1", enrolled_ms=1, labels={"site": "north"}, desired_sequence=3))
        session.add(Device(id="gone", enrolled_ms=1, revoked=True))
    return made


def _device(database: Database) -> dict[str, Any]:
    with database.reading() as session:
        device = session.get_one(Device, "d1")
        return {column.key: getattr(device, column.key) for column in Device.__table__.columns}


def _reported(**fields: Any) -> bytes:
    base: dict[str, Any] = {
        "device_id": "d1",
        "boot_id": "boot-1",
        "revision": 5,
        "desired_sequence": 3,
        "update_status": UpdateStatus.UPDATE_STATUS_COMMITTED,
    }
    return ReportedState(**(base | fields)).SerializeToString()


def _presence(online: bool, boot_id: str, device_id: str = "d1") -> bytes:
    return Presence(device_id=device_id, online=online, boot_id=boot_id, since_unix_ms=7).SerializeToString()


def _apply(database: Database, apply: Callable[..., Outcome], payload: bytes, device_id: str = "d1") -> Outcome:
    with database.transaction() as session:
        return apply(session, device_id, payload)


def test_every_column_is_written(database: Database) -> None:
    payload = _reported(
        active_release="release-1",
        active_variant="int8-x86",
        target_release="release-2",
        update_detail="x" * 3000,
        rollout_id="rollout-1",
        device_class="x86_64",
        agent_version="0.1.0",
        flower_node_id=2**64 - 1,
        labelled_samples=12,
        chunks_done=3,
        chunks_total=9,
        ineligible_reason="on battery",
        ineligible_code="battery",
        labels={"site": "forged"},
    )
    assert _apply(database, apply_reported, payload) is Outcome.APPLIED
    device = _device(database)
    assert device["last_seen_ms"] > 0
    assert device | {"last_seen_ms": 0} == device | {
        "last_seen_ms": 0,
        "boot_id": "boot-1",
        "reported_revision": 5,
        "reported_sequence": 3,
        "active_release": "release-1",
        "active_variant": "int8-x86",
        "target_release": "release-2",
        "update_status": "committed",
        "update_detail": "x" * 2000,
        "reported_rollout": "rollout-1",
        "device_class": "x86_64",
        "agent_version": "0.1.0",
        "flower_node_id": "18446744073709551615",
        "labelled_samples": 12,
        "chunks_done": 3,
        "chunks_total": 9,
        "ineligible_reason": "on battery",
        "ineligible_code": "battery",
        "labels": {"site": "north"},  # labels decide about cohorts and are the operator's
        "desired_sequence": 3,
    }


@pytest.mark.parametrize(
    ("name", "messages", "expected", "last"),
    [
        ("newer", [_reported(revision=6)], ["applied"], 6),
        ("the same again", [_reported()], ["stale"], 5),
        ("older", [_reported(revision=4)], ["stale"], 5),
        ("a new boot counts from one", [_reported(boot_id="boot-2", revision=1)], ["applied"], 1),
        (
            "a new boot that announced itself first",
            [_presence(True, "boot-2"), _reported(boot_id="boot-2", revision=1)],
            ["applied", "applied"],
            1,
        ),
        (
            "the old state of a broker that restored it, before the device republishes",
            [_reported(revision=4), _reported(revision=6)],
            ["stale", "applied"],
            6,
        ),
    ],
)
def test_the_newest_state_counts(
    database: Database, name: str, messages: list[bytes], expected: list[str], last: int
) -> None:
    _apply(database, apply_reported, _reported())
    outcomes = []
    for payload in messages:
        apply = apply_presence if payload == _presence(True, "boot-2") else apply_reported
        outcomes.append(_apply(database, apply, payload).value)
    assert (name, outcomes, _device(database)["reported_revision"]) == (name, expected, last)


@pytest.mark.parametrize(
    ("name", "payload", "device_id", "field"),
    [
        ("not protobuf", b"\xff\xff\xff", "d1", "ReportedState"),
        ("cut short", _reported()[:-1], "d1", "ReportedState"),
        ("too large", bytes(MESSAGE_BYTES + 1), "d1", "ReportedState"),
        ("of another device", _reported(device_id="d2"), "d1", "device_id"),
        ("unknown device", _reported(device_id="d2"), "d2", "device_id"),
        ("revoked device", _reported(device_id="gone"), "gone", "device_id"),
        ("no status", _reported(update_status=UpdateStatus.UPDATE_STATUS_UNSPECIFIED), "d1", "reported.update_status"),
        ("status of the future", _reported(update_status=99), "d1", "reported.update_status"),
        ("release that is no name", _reported(active_release="../x"), "d1", "reported.active_release"),
        ("boot that is not printable", _reported(boot_id="a\nb"), "d1", "reported.boot_id"),
        ("revision out of bounds", _reported(revision=2**63), "d1", "reported.revision"),
        ("samples out of bounds", _reported(labelled_samples=2**60), "d1", "reported.labelled_samples"),
    ],
)
def test_what_is_refused_changes_nothing(
    database: Database, name: str, payload: bytes, device_id: str, field: str
) -> None:
    before = _device(database)
    with pytest.raises(WireError) as caught:
        _apply(database, apply_reported, payload, device_id)
    assert (name, caught.value.field) == (name, field)
    assert _device(database) == before


def test_presence_follows_the_device_and_not_the_will_of_an_earlier_boot(database: Database) -> None:
    steps = [
        (_presence(True, "boot-1"), "applied", True),
        (_presence(False, "boot-1"), "applied", False),
        (_presence(True, "boot-2"), "applied", True),
        (_presence(False, "boot-1"), "stale", True),  # the delayed will of the boot before
        (_presence(False, "boot-2"), "applied", False),
    ]
    for payload, outcome, online in steps:
        assert _apply(database, apply_presence, payload).value == outcome
        assert _device(database)["online"] is online


def test_presence_of_another_device_is_refused(database: Database) -> None:
    with pytest.raises(WireError, match="whose topic it is"):
        _apply(database, apply_presence, _presence(True, "boot-1", device_id="d2"))
    assert _device(database)["online"] is False


def test_devices_that_do_not_come_back_with_the_broker_are_set_offline(database: Database) -> None:
    with database.transaction() as session:
        session.add(Device(id="back", enrolled_ms=1, online=True, last_seen_ms=1_000))
        session.add(Device(id="away", enrolled_ms=1, online=True, last_seen_ms=999))
        assert sweep_absent(session, since_ms=1_000) == 1
    with database.reading() as session:
        assert session.get_one(Device, "back").online is True
        assert session.get_one(Device, "away").online is False


def test_a_device_that_is_ahead_of_a_restored_store_can_be_instructed_again(database: Database) -> None:
    _apply(database, apply_reported, _reported(desired_sequence=40))
    device = _device(database)
    assert device["desired_sequence"] == 41
    assert device["published_sequence"] < 41
