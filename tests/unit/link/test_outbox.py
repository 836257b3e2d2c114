"""The outbox against a model of it, its bounds, its order of dropping, broken files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skerry_agent.errors import DeviceError
from skerry_agent.link.outbox import DROP_ORDER, Outbox
from skerry_contract.v1.fitness_pb2 import FitnessCertificate
from skerry_contract.v1.telemetry_pb2 import (
    CampaignResponse,
    DriftReport,
    HealthReport,
    LabelReport,
    UpdateEvent,
    UplinkMessage,
)

BODIES: dict[str, UplinkMessage] = {
    "health": UplinkMessage(health=HealthReport(requests=1)),
    "drift": UplinkMessage(drift=DriftReport(window=1)),
    "fitness": UplinkMessage(fitness=FitnessCertificate(statement=b"s")),
    "update": UplinkMessage(update=UpdateEvent(event="start")),
    "label": UplinkMessage(label=LabelReport(labelled=1)),
    "campaign": UplinkMessage(campaign=CampaignResponse(campaign_id="c")),
}


def message(kind: str) -> UplinkMessage:
    copy = UplinkMessage()
    copy.CopyFrom(BODIES[kind])
    return copy


def make(path: Path, *, messages: int = 1000, size: int = 1 << 20) -> Outbox:
    return Outbox(path / "outbox.sqlite", device_id="press-07", message_limit=messages, byte_limit=size)


def sequences(outbox: Outbox) -> list[int]:
    return [found.sequence for found in outbox.pending(10_000)]


def test_every_kind_of_message_has_its_place_in_the_order_of_dropping() -> None:
    kinds = [field.name for field in UplinkMessage.DESCRIPTOR.oneofs_by_name["body"].fields]
    assert sorted(DROP_ORDER) == sorted(kinds) == sorted(BODIES)


def test_what_a_source_hands_over_again_is_known_even_when_it_was_acknowledged(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    assert outbox.enqueue_once(message("label"), source="store-1", number=1)
    assert not outbox.enqueue_once(message("label"), source="store-1", number=1)
    assert outbox.enqueue_once(message("label"), source="store-1", number=2)
    assert sequences(outbox) == [1, 2]
    assert outbox.acknowledge(outbox.outbox_id, [1, 2]) == 2
    outbox.close()
    again = make(tmp_path)
    assert not again.enqueue_once(message("label"), source="store-1", number=2)
    assert not again.enqueue_once(message("label"), source="store-1", number=1)
    assert again.enqueue_once(message("label"), source="another-store", number=1)
    assert sequences(again) == [3]


def test_a_message_that_is_refused_uses_up_no_number_of_its_source(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    with pytest.raises(ValueError, match="needs a body"):
        outbox.enqueue_once(UplinkMessage(), source="store-1", number=1)
    assert outbox.enqueue_once(message("label"), source="store-1", number=1)


def test_messages_are_numbered_filled_in_and_kept_in_order(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    assert [outbox.enqueue(message(kind)) for kind in ("drift", "health", "label")] == [1, 2, 3]
    first = outbox.pending(1)[0]
    assert (first.device_id, first.outbox_id, first.sequence) == ("press-07", outbox.outbox_id, 1)
    assert first.created_unix_ms > 1_600_000_000_000
    assert first.drift.window == 1
    assert sequences(outbox) == [1, 2, 3]


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    for _ in range(3):
        outbox.enqueue(message("drift"))
    assert outbox.acknowledge(outbox.outbox_id, [1, 2, 3]) == 3
    outbox.close()
    again = make(tmp_path)
    assert again.outbox_id == outbox.outbox_id
    assert again.enqueue(message("drift")) == 4


def test_an_acknowledgement_of_another_outbox_removes_nothing(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    outbox.enqueue(message("drift"))
    assert outbox.acknowledge("outbox-0000", [1]) == 0
    assert outbox.acknowledge(outbox.outbox_id, [0, 2, 2**64 - 1]) == 0
    assert sequences(outbox) == [1]


def test_a_full_outbox_drops_the_oldest_by_kind(tmp_path: Path) -> None:
    outbox = make(tmp_path, messages=5)
    for kind in ("campaign", "health", "drift", "health", "drift"):
        outbox.enqueue(message(kind))
    kept = []
    for _ in range(5):
        outbox.enqueue(message("label"))
        kept.append(sequences(outbox))
    assert kept == [
        [1, 3, 4, 5, 6],  # the oldest health report went
        [1, 3, 5, 6, 7],  # the other one
        [1, 5, 6, 7, 8],  # the older drift report
        [1, 6, 7, 8, 9],  # the other one
        [1, 7, 8, 9, 10],  # a label report: there is no update event, and campaign answers go last
    ]
    assert outbox.dropped == 5
    assert outbox.depth() == 5


def test_a_new_health_report_never_drives_out_something_that_matters_more_when_there_is_another(tmp_path: Path) -> None:
    outbox = make(tmp_path, messages=2)
    outbox.enqueue(message("label"))
    outbox.enqueue(message("health"))
    outbox.enqueue(message("health"))
    assert sequences(outbox) == [1, 3]


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    outbox = make(tmp_path, size=3_000)
    for _ in range(5):
        outbox.enqueue(UplinkMessage(update=UpdateEvent(detail="x" * 900)))
    assert sequences(outbox) == [3, 4, 5]
    total = sum(found.ByteSize() for found in outbox.pending(10))
    assert total <= 3_000


@pytest.mark.parametrize("detail", [3_000, 140_000])
def test_a_message_that_can_never_be_kept_is_refused(tmp_path: Path, detail: int) -> None:
    outbox = make(tmp_path, size=3_000 if detail == 3_000 else 1 << 20)
    outbox.enqueue(message("label"))
    with pytest.raises(ValueError, match=r"may have \d+ bytes, this one of kind update has more"):
        outbox.enqueue(UplinkMessage(update=UpdateEvent(detail="x" * detail)))
    assert sequences(outbox) == [1]


def test_a_message_without_a_body_is_refused(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    with pytest.raises(ValueError, match="needs a body"):
        outbox.enqueue(UplinkMessage())
    assert outbox.depth() == 0


def test_a_broken_file_is_put_aside_and_numbered_anew(tmp_path: Path) -> None:
    before = make(tmp_path)
    before.enqueue(message("drift"))
    before.close()
    (tmp_path / "outbox.sqlite").write_bytes(b"this is not a database" * 100)
    after = make(tmp_path)
    assert after.outbox_id != before.outbox_id
    assert after.enqueue(message("drift")) == 1
    assert (tmp_path / "outbox.sqlite.broken").read_bytes().startswith(b"this is not")


def test_a_full_disk_is_a_device_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    outbox = make(tmp_path)
    outbox.enqueue(message("label"))
    pages = outbox._connection.execute("PRAGMA page_count").fetchone()[0]
    outbox._connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for _ in range(200):
            outbox.enqueue(UplinkMessage(update=UpdateEvent(detail="x" * 3_000)))

    with pytest.raises(DeviceError, match="full") as caught:
        fill()
    assert caught.value.remedy
    kept = sequences(outbox)
    assert kept == list(range(1, len(kept) + 1))
    assert outbox.depth() == len(kept)


def test_a_folder_that_cannot_be_made_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="outbox"):
        make(tmp_path / "file")


class Model(RuleBasedStateMachine):
    """A list that obeys the same rules."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").exists() else None))
        self.outbox = make(self.folder, messages=6, size=2_000)
        self.kept: list[tuple[int, int, int]] = []  # rank, sequence, bytes
        self.next = 1
        self.dropped = 0

    @rule(kind=st.sampled_from(DROP_ORDER), padding=st.integers(0, 500))
    def enqueue(self, kind: str, padding: int) -> None:
        added = message(kind)
        added.created_unix_ms = 1_700_000_000_000
        if kind == "update":
            added.update.detail = "x" * padding
        number = self.outbox.enqueue(added)
        assert number == self.next
        size = added.ByteSize()
        self.kept.sort()
        while self.kept and (len(self.kept) >= 6 or sum(entry[2] for entry in self.kept) + size > 2_000):
            self.kept.pop(0)
            self.dropped += 1
        self.kept.append((DROP_ORDER.index(kind), number, size))
        self.next += 1

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        numbers = data.draw(st.lists(st.sampled_from([entry[1] for entry in self.kept] + [self.next, 0])))
        removed = self.outbox.acknowledge(self.outbox.outbox_id, numbers)
        left = [entry for entry in self.kept if entry[1] not in numbers]
        assert removed == len(self.kept) - len(left)
        self.kept = left

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.outbox = make(self.folder, messages=6, size=2_000)

    @invariant()
    def same(self) -> None:
        assert sequences(self.outbox) == sorted(entry[1] for entry in self.kept)
        assert self.outbox.depth() == len(self.kept)
        assert self.outbox.dropped == self.dropped

    def teardown(self) -> None:
        self.outbox.close()
        with sqlite3.connect(self.folder / "outbox.sqlite") as connection:
            counted = connection.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM messages").fetchone()
            assert connection.execute("SELECT messages, bytes FROM outbox").fetchone() == counted
        import shutil

        shutil.rmtree(self.folder)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
