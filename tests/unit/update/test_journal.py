"""The journal over versions of the agent, and what becomes of one that cannot be used."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from skerry_agent.config import AgentLayout
from skerry_agent.update.journal import (
    VERSION,
    Journal,
    NewerJournalError,
    journal_path,
    read_journal,
    write_journal,
)
from skerry_agent.update.slots import read_pointer
from skerry_agent.update.update_machine import State
from unit.update.device import TestDevice, snapshot
from unit.update.releases import make_desired, make_release

OLD, NEW = make_release("digits-1"), make_release("digits-2")


def written(root: Path, data: bytes) -> AgentLayout:
    layout = AgentLayout(root)
    layout.update.mkdir(parents=True, exist_ok=True)
    journal_path(layout).write_bytes(data)
    return layout


def first_version(**changes: object) -> dict[str, object]:
    """A document exactly as the first version of the agent wrote it."""
    return {
        "version": 1,
        "state": "proving",
        "detail": "slot b",
        "sequence": 7,
        "desired": base64.b64encode(b"\x00\xff").decode(),
        "handled": 6,
        "target": base64.b64encode(b"target").decode(),
        "resumes": 3,
        "failures": {"aa": 2},
        "signed_ms": 1_700_000_000_000,
        **changes,
    }


EXPECTED = Journal(State.PROVING, "slot b", 7, b"\x00\xff", 6, b"target", 3, {"aa": 2}, 1_700_000_000_000)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    assert read_journal(layout) == Journal()
    journal = Journal(State.NEED, "waits", 7, b"\x00\xff", 6, b"target", 3, {"aa": 2}, 1_700_000_000_000, 12)
    write_journal(layout, journal)
    assert read_journal(layout) == journal
    assert json.loads(journal_path(layout).read_bytes())["version"] == VERSION == 2


def test_the_first_version_is_read_with_and_without_its_number(tmp_path: Path) -> None:
    document = first_version()
    assert read_journal(written(tmp_path, json.dumps(document).encode())) == EXPECTED
    del document["version"]
    assert read_journal(written(tmp_path, json.dumps(document).encode())) == EXPECTED


@pytest.mark.parametrize("state", ["downloading", "staging", "activating", "probation"])
def test_an_update_that_the_first_version_began_is_finished(tmp_path: Path, state: str) -> None:
    device = TestDevice(tmp_path, OLD, NEW)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.updater.offer(make_desired(2, NEW, probation_ms=5_000))
    device.reach(State(state))
    path = journal_path(device.layout)
    document = json.loads(path.read_bytes())
    del document["approved"]
    path.write_text(json.dumps(document | {"version": 1}))
    upgraded = TestDevice(tmp_path, OLD, NEW)
    upgraded.settle()
    assert upgraded.answering() == upgraded.serving.release_id == "digits-2"
    # One that was past its approval when the agent was upgraded has none: its floor rises with the next release.
    assert upgraded.approvals.floor() == (1 if state in ("activating", "probation") else 2)


@pytest.mark.parametrize("state", ["idle", "probation"])
def test_a_later_version_is_left_alone_and_what_answers_goes_on(tmp_path: Path, state: str) -> None:
    device = TestDevice(tmp_path, OLD, NEW)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.updater.offer(make_desired(2, NEW, probation_ms=60_000))
    device.reach(State.PROBATION)
    path = journal_path(device.layout)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"version": 3, "state": state, "more": [1]}))
    before = snapshot(tmp_path)
    downgraded = TestDevice(tmp_path, OLD, NEW)
    before |= {"update/boots.json": (tmp_path / "update" / "boots.json").read_bytes()}
    downgraded.updater.offer(make_desired(3, NEW))
    for _ in range(20):
        downgraded.step()
    assert snapshot(tmp_path) == before
    assert downgraded.updater.snapshot.detail == (
        "the update journal is of version 3, this agent knows versions up to 2: updates wait for a newer agent"
    )
    assert downgraded.answering() == downgraded.serving.release_id == "digits-2"
    with pytest.raises(NewerJournalError) as caught:
        read_journal(downgraded.layout)
    assert caught.value.version == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"version": "x"}',
        b'{"version": 0}',
        b'{"version": 2}',
        b'{"version": 1, "state": "idle"}',
        b"\xff\xfe",
        json.dumps(first_version(target="%%")).encode(),
        json.dumps(first_version(failures=[])).encode(),
    ],
)
def test_a_broken_one_is_put_aside(tmp_path: Path, data: bytes) -> None:
    layout = written(tmp_path, data)
    assert read_journal(layout) == Journal()
    assert (layout.update / "journal.broken.json").read_bytes() == data
    assert not journal_path(layout).exists()


def test_a_state_that_is_not_known_is_rolled_back(tmp_path: Path) -> None:
    layout = written(tmp_path, json.dumps(first_version(state="levitating")).encode())
    journal = read_journal(layout)
    assert journal.state is State.ROLLED_BACK
    assert journal.detail == "unknown state 'levitating' was rolled back"
    assert (journal.sequence, journal.failures) == (7, {"aa": 2})
    assert read_pointer(layout) is None
