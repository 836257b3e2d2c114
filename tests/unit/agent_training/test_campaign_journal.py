"""Which answer of a device counted: the table, and what is left of it when writing is cut anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.training.campaign_journal import (
    AGE_S,
    CAMPAIGNS,
    CampaignJournal,
    Carried,
    Decision,
    JournalError,
    RoundRecord,
    decide,
    question_digest,
)
from skerry_contract.campaign import TrainReply
from skerry_contract.tensors import Array, encode_bundle
from unit.agent_training.campaign_rig import FullDisk, instruction
from unit.identity.power_disk import PowerCut, PowerDisk

ZERO: dict[str, Array] = {"w": np.zeros(3, np.float32)}

# Name: kept rounds, round asked, same question as the newest, last counted -> decision.
DECISIONS = {
    "the first round": ([], 1, False, None, Decision()),
    "the next round, nothing said": ([1], 2, False, None, Decision(base=1)),
    "the next round, it counted": ([1], 2, False, 1, Decision(base=1)),
    "the next round, the answer was lost": ([1], 2, False, 0, Decision(drop=(1,))),
    "the next round, the second answer was lost": ([1, 2], 3, False, 1, Decision(base=1, drop=(2,))),
    "the next round, both counted": ([1, 2], 3, False, 2, Decision(base=2, drop=(1,))),
    "rounds without this device": ([1, 2], 9, False, 2, Decision(base=2, drop=(1,))),
    "a counted round whose file is gone": ([1], 4, False, 3, Decision(drop=(1,))),
    "the same question again": ([1, 2], 2, True, None, Decision(repeat=2)),
    "the same question again, round 1 counted": ([1, 2], 2, True, 1, Decision(repeat=2)),
    "the same version again, the answer counted": ([1, 2], 2, True, 2, Decision(base=2, drop=(1,), answered=True)),
    "the same round from another model": ([1, 2], 2, False, None, Decision(base=1, drop=(2,), answered=True)),
    "the server went back": ([6, 7], 3, False, None, Decision(drop=(6, 7), answered=True)),
    "the server went back and says so": ([6, 7], 3, False, 2, Decision(drop=(6, 7), answered=True)),
    "an old question": ([1, 2], 1, True, None, Decision(drop=(1, 2), answered=True)),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions(name: str) -> None:
    kept, number, same, counted, expected = DECISIONS[name]
    got = decide(kept, lambda _: "q" if same else "other", round_number=number, question="q", counted=counted)
    assert got == expected


def record(number: int, value: float) -> RoundRecord:
    state: dict[str, Array] = {"w": np.full(3, value, np.float32)}
    reply = TrainReply(
        device_id="device-7",
        examples=5,
        steps=2,
        seconds=0.5,
        loss=1.25,
        validation_examples=3,
        validation_accuracy=0.5,
        validation_loss=2.0,
        parameters=encode_bundle(state),
        wire="int8",
        control=b"abc",
    )
    return RoundRecord(number, f"question-{number}", reply, Carried(state, {"w": np.full(3, -value, np.float32)}))


def values(journal: CampaignJournal) -> dict[int, float]:
    """Kept round to its value; everything in a record is of the same round, or this fails."""
    found: dict[int, float] = {}
    for number in range(1, 9):
        kept = journal.record("campaign-1", number)
        if kept is not None:
            value = float(np.asarray(kept.after.residual["w"], dtype=np.float64)[0])
            expected = record(number, value)
            assert (kept.round, kept.question, kept.reply) == (number, expected.question, expected.reply)
            assert kept.after.control["w"].tolist() == [-value] * 3
            found[number] = value
    return found


def test_the_last_two_rounds_survive_a_restart_in_memory_and_on_disk(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "campaigns"):
        journal = CampaignJournal(folder)
        for number, base in ((1, 0), (2, 1), (3, 2)):
            journal.keep("campaign-1", record(number, number * 1.5), base=base)
        assert values(journal) == {2: 3.0, 3: 4.5}
        if folder is not None:
            assert values(CampaignJournal(folder)) == {2: 3.0, 3: 4.5}
            assert len(list((folder / "campaign-1").iterdir())) == 2
        journal.forget("campaign-1")
        assert not journal.has("campaign-1")
        assert values(journal) == {}
        assert folder is None or not (folder / "campaign-1").exists()


def keep_and_drop(journal: CampaignJournal) -> None:
    journal.keep("campaign-1", record(2, 2.0), base=1)
    journal.drop("campaign-1", [1])


@pytest.mark.parametrize("forgets", [False, True])
def test_a_cut_at_any_call_leaves_whole_records_and_the_one_that_counted(tmp_path: Path, forgets: bool) -> None:
    """Round 2 is being written while round 1 counts: whatever is left, round 1 can be gone on from, or round 2 is."""
    counting = PowerDisk()
    journal = CampaignJournal(tmp_path / "whole", disk=counting)
    journal.keep("campaign-1", record(1, 1.0), base=0)
    before = len(counting.calls)
    keep_and_drop(journal)
    calls = len(counting.calls)
    assert calls - before >= 5
    for cut_at in range(before, calls):
        folder = tmp_path / f"cut-{cut_at}"
        disk = PowerDisk(cut_at=cut_at, forgets=forgets)
        journal = CampaignJournal(folder, disk=disk)
        journal.keep("campaign-1", record(1, 1.0), base=0)
        with pytest.raises(PowerCut):
            keep_and_drop(journal)
        again = CampaignJournal(folder)
        assert values(again) in ({1: 1.0}, {1: 1.0, 2: 2.0}, {2: 2.0}), cut_at
        again.keep("campaign-1", record(3, 3.0), base=max(values(again)))
        assert values(CampaignJournal(folder))[3] == 3.0
        assert not list((folder / "campaign-1").glob(".*")), "what a cut write left is gone"


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "a flipped bit": _flip,
    "empty": lambda path: path.write_bytes(b""),
    "another round under the name": lambda path: path.write_bytes((path.parent / "0000001.kept").read_bytes()),
    "not a file": lambda path: _folder(path),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_no_record(tmp_path: Path, name: str) -> None:
    journal = CampaignJournal(tmp_path)
    journal.keep("campaign-1", record(1, 1.0), base=0)
    journal.keep("campaign-1", record(2, 2.0), base=1)
    DAMAGES[name](tmp_path / "campaign-1" / "0000002.kept")
    assert values(CampaignJournal(tmp_path)) == {1: 1.0}
    carried = CampaignJournal(tmp_path).carried("campaign-1", 2)
    assert (carried.residual, carried.control) == ({}, {})


def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path: Path) -> None:
    disk = FullDisk()
    journal = CampaignJournal(tmp_path, disk=disk)
    journal.keep("campaign-1", record(1, 1.0), base=0)
    disk.full = True
    with pytest.raises(JournalError, match=r"round 2 cannot be written.*No space left"):
        journal.keep("campaign-1", record(2, 2.0), base=1)
    assert values(journal) == values(CampaignJournal(tmp_path)) == {1: 1.0}
    assert [path.name for path in (tmp_path / "campaign-1").iterdir()] == ["0000001.kept"]


def test_old_and_surplus_campaigns_are_forgotten(tmp_path: Path) -> None:
    now = [1e9]
    journal = CampaignJournal(tmp_path, wall=lambda: now[0])

    def keep(name: str) -> None:
        journal.keep(name, record(1, 1.0), base=0)
        for path in (tmp_path / name).iterdir():
            os.utime(path, (now[0], now[0]))
        now[0] += 10

    for number in range(CAMPAIGNS + 2):
        keep(f"c{number}")
    keep("c2")
    assert set(CampaignJournal(tmp_path, wall=lambda: now[0]).campaigns()) == {"c2", "c3", "c4", "c5"}
    now[0] += AGE_S
    keep("young")
    assert CampaignJournal(tmp_path, wall=lambda: now[0]).campaigns() == ["young"]
    assert [path.name for path in tmp_path.iterdir()] == ["young"]


def test_the_question_is_what_is_computed_not_how_it_travels() -> None:
    asked = instruction(ZERO)
    digest = question_digest(asked, "aa")
    for same in (
        instruction(ZERO, deadline_ms=5),
        instruction(ZERO, counted=b"x" * 12),
        instruction(ZERO, wire="int8", density=0.5),
        instruction(ZERO, parameters=b"difference", parameters_wire="int4", base_sha256="bb"),
    ):
        assert question_digest(same, "aa") == digest
    others = [
        question_digest(asked, "ab"),
        question_digest(instruction(ZERO, 2), "aa"),
        question_digest(instruction(ZERO, seed=9), "aa"),
        question_digest(instruction(ZERO, clip_norm=1.0), "aa"),
        question_digest(instruction(ZERO, control=b"c"), "aa"),
        question_digest(instruction(ZERO, personal="head.*"), "aa"),
    ]
    assert len({digest, *others}) == 7
