"""Exactly once: duplicates, kills around the commit, poison, floods. The link is a recording one that can fail."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import sqlalchemy as sa

from skerry_contract.histogram import encode_counts
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.telemetry_pb2 import (
    CampaignResponse,
    DeviceConditions,
    DriftReport,
    HealthReport,
    LabelReport,
    UpdateEvent,
    UplinkAck,
    UplinkMessage,
)
from skerry_server.clock import now_ms
from skerry_server.link import BrokerUnavailableError, ServerLink
from skerry_server.monitoring import ingest
from skerry_server.monitoring.ingest import UplinkIngest
from skerry_server.monitoring.uplink_rows import AHEAD_MS, BEFORE_MS, believable_ms
from skerry_server.store.database import Database
from skerry_server.store.tables import (
    Base,
    Campaign,
    CampaignParticipant,
    Device,
    DriftWindow,
    HealthRow,
    LabelRow,
    UpdateEventRow,
    Uplink,
)
from skerry_server.tally import Tally

ENROLLED = now_ms() - 3_600_000


class Killed(BaseException):
    """Ends a step as SIGKILL would: nothing catches it."""


class RecordingLink(ServerLink):
    """Keeps what is published; can be away, or be the moment of the kill."""

    def __init__(self) -> None:
        super().__init__(host="127.0.0.1", port=1, username="", password="", client_id="recording")
        self.acks: list[tuple[str, UplinkAck]] = []
        self.away = False
        self.kill = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        if self.kill:
            raise Killed
        future: Future[None] = Future()
        if self.away:
            future.set_exception(BrokerUnavailableError("away"))
        else:
            self.acks.append((topic, UplinkAck.FromString(payload)))
            future.set_result(None)
        return future


class World:
    """A store with two devices, an ingest, and a link."""

    def __init__(self) -> None:
        self.database = Database("sqlite://")
        Base.metadata.create_all(self.database.engine)
        with self.database.transaction() as session:
            session.add(Device(id="d1", enrolled_ms=ENROLLED))
            session.add(Device(id="d2", enrolled_ms=ENROLLED))
            session.add(Device(id="gone", enrolled_ms=ENROLLED, revoked=True))
        self.link = RecordingLink()
        self.tally = Tally()
        self.ingest = UplinkIngest(self.database, self.link, self.tally)

    def restart(self) -> None:
        """The process was killed: what it had in memory is gone."""
        self.link.kill = False
        self.ingest = UplinkIngest(self.database, self.link, self.tally)

    def receive(self, *messages: UplinkMessage) -> None:
        for message in messages:
            self.ingest.receive(device_topic(message.device_id, DeviceTopic.UP), message.SerializeToString())

    def acknowledged(self) -> list[tuple[str, str, int]]:
        """(topic's device, outbox, sequence) of everything acknowledged so far, in order."""
        return [
            (topic.split("/")[3], ack.outbox_id, sequence)
            for topic, ack in self.link.acks
            for sequence in ack.sequences
        ]

    def count(self, table: type[Base]) -> int:
        with self.database.reading() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


@pytest.fixture
def world() -> World:
    return World()


def _message(sequence: int, *, device_id: str = "d1", outbox_id: str = "o1", **body: Any) -> UplinkMessage:
    content = body or {"health": HealthReport(release_id="r1", requests=sequence)}
    return UplinkMessage(
        device_id=device_id, outbox_id=outbox_id, sequence=sequence, created_unix_ms=now_ms(), **content
    )


def _invite(world: World) -> None:
    """Device d1 is invited to campaign c1."""
    with world.database.transaction() as session:
        moment = {"created_ms": 1, "updated_ms": 1}
        campaign = Campaign(id="c1", task="t", base_release="r", cohort_id="all", strategy="fedavg", settings={})
        for name, value in (moment | {"state": "recruiting", "created_by": "ada"}).items():
            setattr(campaign, name, value)
        session.add(campaign)
        session.flush()
        session.add(CampaignParticipant(campaign_id="c1", device_id="d1", state="invited"))


def test_every_kind_becomes_its_row_and_is_acknowledged(world: World) -> None:
    _invite(world)
    drift = DriftReport(
        boot_id="b1",
        window=4,
        release_id="r1",
        edges_sha256=b"\xab" * 32,
        started_unix_ms=10,
        ended_unix_ms=20,
        rows=3,
        features=[encode_counts([1, 2])],
    )
    world.receive(
        _message(1, drift=drift),
        _message(2, health=HealthReport(release_id="r1", requests=9, latency_p99_us=700, training=True)),
        _message(3, label=LabelReport(release_id="r1", labelled=3, correct=2, classes=2, confusion=[1, 1, 0, 1])),
        _message(4, update=UpdateEvent(release_id="r1", from_state="a", event="e", to_state="b", detail="why\0")),
        _message(
            5, campaign=CampaignResponse(campaign_id="c1", accepted=True, flower_node_id=2**64 - 1, reason="ready")
        ),
    )
    world.ingest.step()
    assert world.acknowledged() == [("d1", "o1", sequence) for sequence in range(1, 6)]
    with world.database.reading() as session:
        window = session.scalars(sa.select(DriftWindow)).one()
        assert (window.window, window.rows, window.started_ms, window.judged) == (4, 3, 10, False)
        assert window.edges_sha256 == "ab" * 32
        assert DriftReport.FromString(window.body) == drift
        health = session.scalars(sa.select(HealthRow)).one()
        assert (health.requests, health.latency_p99_us) == (9, 700)
        label = session.scalars(sa.select(LabelRow)).one()
        assert label.confusion == {"classes": 2, "counts": [1, 1, 0, 1]}
        event = session.scalars(sa.select(UpdateEventRow)).one()
        assert (event.from_state, event.event, event.to_state, event.detail) == ("a", "e", "b", "why")
        participant = session.get_one(CampaignParticipant, ("c1", "d1"))
        assert (participant.state, participant.flower_node_id) == ("accepted", "18446744073709551615")
        device = session.get_one(Device, "d1")
        assert device.health["requests"] == 9
        assert device.health["training"] is True
        assert device.health["labelled"] == 0
        assert device.last_seen_ms > 0
        kinds = session.scalars(sa.select(Uplink.kind).order_by(Uplink.sequence)).all()
        assert kinds == ["drift", "health", "label", "update", "campaign"]


def test_duplicates_in_a_batch_and_later_are_stored_once_and_acknowledged_again(world: World) -> None:
    world.receive(_message(1), _message(1), _message(2))
    world.ingest.step()
    world.receive(_message(2), _message(1), _message(3))
    world.ingest.step()
    assert world.count(HealthRow) == world.count(Uplink) == 3
    assert sorted(set(world.acknowledged())) == [("d1", "o1", 1), ("d1", "o1", 2), ("d1", "o1", 3)]
    assert world.acknowledged()[-3:] == [("d1", "o1", 2), ("d1", "o1", 1), ("d1", "o1", 3)]
    assert world.tally.counts() == {"uplink-duplicate": 3, "uplink-health": 3}


def test_a_kill_between_commit_and_acknowledgement_loses_and_doubles_nothing(world: World) -> None:
    world.receive(_message(1), _message(2))
    world.link.kill = True
    with pytest.raises(Killed):
        world.ingest.step()
    assert world.count(HealthRow) == 2
    assert world.acknowledged() == []
    world.restart()
    world.receive(_message(1), _message(2))  # the device had no acknowledgement
    world.ingest.step()
    assert world.count(HealthRow) == 2
    assert world.acknowledged() == [("d1", "o1", 1), ("d1", "o1", 2)]


def test_a_kill_before_the_commit_leaves_nothing_and_acknowledges_nothing(world: World) -> None:
    class Dying(UplinkIngest):
        @staticmethod
        def _store(session: Any, device: Any, accepted: Any) -> None:
            UplinkIngest._store(session, device, accepted)
            session.flush()
            raise Killed

    dying = Dying(world.database, world.link, world.tally)
    message = _message(1)
    dying.receive(device_topic("d1", DeviceTopic.UP), message.SerializeToString())
    with pytest.raises(Killed):
        dying.step()
    assert (world.count(HealthRow), world.count(Uplink), world.acknowledged()) == (0, 0, [])
    world.receive(message)
    world.ingest.step()
    assert (world.count(HealthRow), world.acknowledged()) == (1, [("d1", "o1", 1)])


def test_an_acknowledgement_that_cannot_be_sent_is_sent_for_the_repetition(world: World) -> None:
    world.link.away = True
    world.receive(_message(1))
    world.ingest.step()
    assert (world.count(HealthRow), world.acknowledged()) == (1, [])
    world.link.away = False
    world.receive(_message(1))
    world.ingest.step()
    assert (world.count(HealthRow), world.acknowledged()) == (1, [("d1", "o1", 1)])


@pytest.mark.parametrize(
    ("name", "topic", "payload", "outcome"),
    [
        ("not protobuf", "skerry/v1/d/d1/up", b"\xff\xff", "uplink-refused"),
        ("no key", "skerry/v1/d/d1/up", b"", "uplink-refused"),
        ("of another device", "skerry/v1/d/d2/up", _message(1).SerializeToString(), "uplink-refused"),
        ("not a topic of ours", "skerry/v1/x", _message(1).SerializeToString(), "uplink-refused"),
        ("unknown device", "skerry/v1/d/d9/up", _message(1, device_id="d9").SerializeToString(), None),
        ("revoked device", "skerry/v1/d/gone/up", _message(1, device_id="gone").SerializeToString(), None),
    ],
    ids=["not-protobuf", "no-key", "another-device", "not-our-topic", "unknown-device", "revoked-device"],
)
def test_what_has_no_trusted_key_is_neither_stored_nor_acknowledged(
    world: World, name: str, topic: str, payload: bytes, outcome: str | None
) -> None:
    world.ingest.receive(topic, payload)
    world.receive(_message(7, device_id="d2"))  # and does not hold up others
    world.ingest.step()
    assert world.acknowledged() == [("d2", "o1", 7)], name
    assert world.count(Uplink) == world.count(HealthRow) == 1
    assert world.tally.counts() == {outcome or "uplink-unknown-device": 1, "uplink-health": 1}


def test_a_body_that_can_never_be_used_is_recorded_and_acknowledged_so_that_it_blocks_nothing(world: World) -> None:
    bad = _message(1, drift=DriftReport(release_id="r1", edges_sha256=b"short"))
    world.receive(bad, _message(2))
    world.ingest.step()
    assert world.acknowledged() == [("d1", "o1", 1), ("d1", "o1", 2)]
    assert (world.count(DriftWindow), world.count(HealthRow)) == (0, 1)
    with world.database.reading() as session:
        assert session.get_one(Uplink, ("d1", "o1", 1)).kind == "rejected"
    assert world.tally.counts() == {"uplink-health": 1, "uplink-rejected": 1}


def test_an_outbox_that_was_wiped_counts_anew_and_a_window_is_stored_once(world: World) -> None:
    drift = DriftReport(boot_id="b1", window=4, release_id="r1", edges_sha256=bytes(32), rows=3)
    world.receive(_message(1, drift=drift), _message(1, outbox_id="o2", drift=drift))
    world.ingest.step()
    world.receive(_message(1, device_id="d2", drift=drift))
    world.ingest.step()
    assert world.count(DriftWindow) == 2
    assert sorted(world.acknowledged()) == [("d1", "o1", 1), ("d1", "o2", 1), ("d2", "o1", 1)]


def test_an_answer_to_no_invitation_is_kept_as_its_key_only(world: World) -> None:
    world.receive(_message(1, campaign=CampaignResponse(campaign_id="c9", accepted=True)))
    world.ingest.step()
    assert (world.count(CampaignParticipant), world.count(Uplink)) == (0, 1)


def test_conditions_come_with_health_and_with_answers_and_the_newest_count(world: World) -> None:
    _invite(world)
    warm = DeviceConditions(temperature_c=70.5, idle=False, utc_offset_minutes=-300)
    world.receive(
        _message(1, health=HealthReport(release_id="r1", conditions=DeviceConditions(idle=True, battery_percent=0.0))),
        _message(2, campaign=CampaignResponse(campaign_id="c1", reason="70 °C", reason_code="hot", conditions=warm)),
        _message(3, health=HealthReport(release_id="r1")),  # an older agent's, without
    )
    world.ingest.step()
    with world.database.reading() as session:
        device = session.get_one(Device, "d1")
        told = {"temperature_c": 70.5, "idle": False, "utc_offset_minutes": -300}
        assert (device.conditions, device.conditions_ms > 0) == (told, True)
        assert "conditions" not in device.health
        row = session.get_one(CampaignParticipant, ("c1", "d1"))
        assert (row.state, row.reason_code, row.reason, row.conditions) == ("declined", "hot", "70 °C", told)
    made_up = CampaignResponse(campaign_id="c1", reason="tired", reason_code="gremlins")
    world.receive(_message(4, campaign=made_up))
    world.ingest.step()
    with world.database.reading() as session:
        assert session.get_one(CampaignParticipant, ("c1", "d1")).reason_code == "declined"


def test_a_device_that_was_left_out_cannot_accept(world: World) -> None:
    _invite(world)
    with world.database.transaction() as session:
        row = session.get_one(CampaignParticipant, ("c1", "d1"))
        row.state, row.reason_code = "excluded", "quarantined"
    world.receive(_message(1, campaign=CampaignResponse(campaign_id="c1", accepted=True, flower_node_id=7)))
    world.ingest.step()
    with world.database.reading() as session:
        row = session.get_one(CampaignParticipant, ("c1", "d1"))
        assert (row.state, row.reason_code, row.flower_node_id) == ("excluded", "quarantined", "")


def test_old_health_from_the_outbox_does_not_replace_newer(world: World) -> None:
    newer, older = _message(2), _message(1)
    older.created_unix_ms = newer.created_unix_ms - 60_000
    world.receive(newer, older)
    world.ingest.step()
    with world.database.reading() as session:
        assert session.get_one(Device, "d1").health["requests"] == 2
    assert world.count(HealthRow) == 2


def test_a_flood_is_written_in_batches_and_what_does_not_fit_comes_again(world: World) -> None:
    world.ingest = UplinkIngest(world.database, world.link, world.tally, queue_length=600)
    world.receive(*[_message(sequence) for sequence in range(1, 701)])
    world.ingest.step()
    assert world.count(HealthRow) == 600
    assert world.tally.counts()["uplink-deferred"] == 100
    assert max(len(ack.sequences) for _, ack in world.link.acks) == ingest.BATCH
    world.receive(*[_message(sequence) for sequence in range(601, 701)])
    world.ingest.step()
    assert len(set(world.acknowledged())) == world.count(HealthRow) == 700


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (1_000_000_000 - BEFORE_MS, 1_000_000_000 - BEFORE_MS),
        (1_000_000_000 - BEFORE_MS - 1, 2_000_000_000),
        (2_000_000_000 + AHEAD_MS, 2_000_000_000 + AHEAD_MS),
        (2_000_000_000 + AHEAD_MS + 1, 2_000_000_000),
        (0, 2_000_000_000),
        (-5, 2_000_000_000),
    ],
)
def test_a_clock_that_cannot_be_right_is_not_believed(claimed: int, expected: int) -> None:
    assert believable_ms(claimed, enrolled_ms=1_000_000_000, received_ms=2_000_000_000) == expected
