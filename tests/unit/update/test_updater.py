"""Scenarios: name, what is wrong, the chain of states that must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from skerry_agent.update.journal import journal_path, read_journal
from skerry_agent.update.slots import read_pointer, slot_folder
from skerry_agent.update.update_machine import State
from skerry_contract.v1.delivery_pb2 import Chunk
from unit.update.device import TestDevice
from unit.update.releases import MadeRelease, make_desired, make_release

OLD = make_release("digits-1")
NEW = make_release("digits-2")
THIRD = make_release("digits-3")
GOOD = ["need", "downloading", "verifying", "staging", "proving", "activating", "probation", "committed"]


def served(root: Path, *releases: MadeRelease) -> TestDevice:
    """A device that answers with the old release and has forgotten how it got it."""
    device = TestDevice(root, OLD, NEW, *releases)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    assert device.chain == GOOD
    device.events.clear()
    return device


def refuse_proof(device: TestDevice) -> None:
    device.prover.refuse.add("digits-2")


def refuse_activation(device: TestDevice) -> None:
    device.serving.refuse.add("digits-2")


def fail_requests(device: TestDevice) -> None:
    device.serving.failing.add("digits-2")


def nothing(device: TestDevice) -> None:
    """All is well."""


RETRY = ["downloading", "verifying", "staging", "proving"]


@dataclass(frozen=True)
class Scenario:
    name: str
    prepare: Callable[[TestDevice], None]
    chain: list[str]
    answers: str
    detail: str


SCENARIOS = [
    Scenario("good", nothing, GOOD, "digits-2", "requests, 0 errors"),
    Scenario(
        "proof refused", refuse_proof, ["need", *RETRY, *RETRY, *RETRY, "quarantined"], "digits-1", "golden outputs"
    ),
    Scenario("serving refuses", refuse_activation, [*GOOD[:6], "rolled_back"], "digits-1", "golden outputs differ"),
    Scenario("errors on probation", fail_requests, [*GOOD[:7], "rolled_back"], "digits-1", "requests failed"),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(scenario: Scenario, tmp_path: Path) -> None:
    device = served(tmp_path)
    scenario.prepare(device)
    device.updater.offer(make_desired(2, NEW, rollout_id="rollout-9"))
    device.settle()
    assert device.chain == scenario.chain
    assert device.answering() == device.serving.release_id == scenario.answers
    said = device.updater.snapshot
    assert scenario.detail in said.detail
    assert (said.target_release, said.rollout_id, said.desired_sequence) == ("digits-2", "rollout-9", 2)
    assert {event.rollout_id for event in device.events} == {"rollout-9"}
    assert {event.release_id for event in device.events} == {"digits-2"}


def test_going_back_is_a_newer_approval_of_the_older_release(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    device.events.clear()
    requests = len(device.wire.requests)
    device.approvals.versions["digits-1"] = 3
    device.updater.offer(make_desired(3, OLD, rollout_id="rollback-1"))
    device.settle()
    assert device.answering() == "digits-1"
    assert device.chain == GOOD
    assert len(device.wire.requests) == requests, "the other slot still had every file"


def test_the_release_that_answers_is_confirmed_for_another_rollout(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, OLD, rollout_id="rollout-2"))
    device.settle()
    assert device.chain == ["committed"]
    assert device.updater.snapshot.rollout_id == "rollout-2"
    assert device.serving.activations == ["digits-1"], "nothing was activated again"


def test_a_digest_is_quarantined_for_ever_after_three_failures(tmp_path: Path) -> None:
    device = served(tmp_path)
    refuse_activation(device)
    for sequence, end in ((2, "rolled_back"), (3, "rolled_back"), (4, "quarantined")):
        device.events.clear()
        device.updater.offer(make_desired(sequence, NEW))
        device.settle()
        assert device.chain == [*GOOD[:6], end]
        assert device.answering() == "digits-1"
    restarted = TestDevice(tmp_path, OLD, NEW, THIRD)
    restarted.updater.offer(make_desired(5, NEW))
    restarted.settle()
    assert restarted.chain == ["quarantined"]
    assert restarted.wire.requests == []
    restarted.updater.offer(make_desired(6, THIRD))
    restarted.settle()
    assert restarted.answering() == "digits-3", "another digest is not punished"


def test_a_desired_state_without_release_stops_a_download_and_keeps_what_answers(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.wire.ready = False
    device.updater.offer(make_desired(2, NEW))
    device.reach(State.DOWNLOADING)
    device.updater.offer(make_desired(3, None))
    device.settle()
    assert device.chain == ["need", "downloading", "idle"]
    assert device.answering() == "digits-1"


def test_a_switch_is_finished_before_a_newer_instruction(tmp_path: Path) -> None:
    device = served(tmp_path, THIRD)
    device.updater.offer(make_desired(2, NEW, probation_ms=10_000))
    device.reach(State.PROBATION)
    device.updater.offer(make_desired(3, THIRD))
    device.settle()
    assert device.chain == [*GOOD, *GOOD]
    assert device.answering() == "digits-3"


def test_the_same_release_for_another_rollout_goes_on_under_its_name(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW, probation_ms=10_000, rollout_id="canary"))
    device.reach(State.PROBATION)
    device.updater.offer(make_desired(3, NEW, rollout_id="fleet"))
    device.settle()
    assert device.chain == GOOD
    assert device.updater.snapshot.rollout_id == "fleet"


def test_probation_lasts_as_long_as_it_was_told(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW, probation_ms=5_000))
    device.reach(State.PROBATION)
    began = device.now
    device.settle()
    assert 5.0 <= device.now - began < 6.5
    assert device.chain == GOOD


def test_serving_killed_on_probation_comes_back_and_is_committed(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW, probation_ms=5_000))
    device.reach(State.PROBATION)
    device.serving.away = True
    for _ in range(20):
        device.step()
    device.serving.away, device.serving.pid = False, 101
    device.settle()
    assert device.answering() == "digits-2"


def test_serving_that_stays_away_on_probation_rolls_back(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW, probation_ms=5_000))
    device.reach(State.PROBATION)
    device.serving.away = True
    for _ in range(2000):
        device.step()
    assert device.chain == [*GOOD[:7], "rolled_back"]
    assert "not answered" in device.events[-1].detail
    device.serving.away = False
    device.settle()
    assert device.answering() == device.serving.release_id == "digits-1"


def test_serving_away_at_activation_is_waited_for(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.serving.away = True
    device.updater.offer(make_desired(2, NEW))
    for _ in range(100):
        device.step()
    assert device.updater.snapshot.state is State.ACTIVATING
    assert "waits for serving" in device.updater.snapshot.detail
    device.serving.away = False
    device.settle()
    assert device.answering() == "digits-2"


def test_serving_away_for_too_long_at_activation_rolls_back(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.serving.away = True
    device.updater.offer(make_desired(2, NEW))
    for _ in range(4000):
        device.step()
    assert device.updater.snapshot.state is State.ROLLED_BACK
    assert read_journal(device.layout).failures == {}, "a device that is not well is not the fault of the digest"


def test_a_download_that_never_comes_has_a_deadline(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.wire.ready = False
    device.updater.offer(make_desired(2, NEW))
    device.reach(State.DOWNLOADING)
    device.step()
    device.now += 8 * 86_400
    device.settle()
    assert device.chain == ["need", "downloading", "rolled_back"]
    assert "downloading took more than 604800 s: waits for the broker" in device.updater.snapshot.detail
    assert device.answering() == "digits-1"


def test_chunks_that_are_wrong_are_asked_for_again(tmp_path: Path) -> None:
    device = served(tmp_path)
    spoiled: list[int] = []

    def spoil(chunk: Chunk) -> list[Chunk]:
        if len(spoiled) >= 3:
            return [chunk, chunk]
        spoiled.append(chunk.index)
        return [Chunk(file_sha256=chunk.file_sha256, index=chunk.index, data=bytes(len(chunk.data)))]

    device.wire.spoil = spoil
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    assert [str(error).split(",")[0].split(" SHA")[0] for error in device.wrong] == [
        f"chunk {index}.data: expected" for index in (0, 1, 2)
    ]
    assert device.chain == GOOD
    assert device.answering() == "digits-2"


def test_a_full_disk_before_the_download_is_waited_for(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.disk.free = 3_000
    requests = len(device.wire.requests)
    device.updater.offer(make_desired(2, NEW))
    for _ in range(30):
        device.step()
    said = device.updater.snapshot
    assert said.state is State.NEED
    assert said.detail == "waits for free space: 3200 bytes to write and 1000 in reserve, 3000 free"
    assert len(device.wire.requests) == requests
    assert device.answering() == "digits-1"
    device.disk.free = 10_000
    device.settle()
    assert device.answering() == "digits-2"


def test_a_downloaded_file_that_rots_is_downloaded_again(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.reach(State.VERIFYING)
    part = device.layout.update / "downloads" / f"{NEW.manifest.files[0].sha256.hex()}.part"
    data = bytearray(part.read_bytes())
    data[7] ^= 1
    part.write_bytes(data)
    device.settle()
    assert device.chain == ["need", "downloading", "verifying", *GOOD[1:]]
    assert "not the file of the manifest: infer.onnx" in device.events[3].detail
    assert device.answering() == "digits-2"


def test_a_broken_pointer_is_replaced_by_a_signed_slot(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.layout.pointer.write_bytes(b"{")
    device.step()
    assert device.answering() == "digits-1"
    pointer = read_pointer(device.layout)
    assert pointer is not None
    assert (pointer.slot, pointer.committed) == ("a", True)


def test_a_broken_journal_is_put_aside_and_what_answers_goes_on(tmp_path: Path) -> None:
    first = served(tmp_path)
    journal_path(first.layout).write_bytes(b'{"version": 1, "state"')
    device = TestDevice(tmp_path, OLD, NEW)
    device.settle()
    assert device.answering() == "digits-1"
    assert (device.layout.update / "journal.broken.json").exists()
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    assert device.answering() == "digits-2"


def test_an_unknown_state_rolls_back_a_release_on_probation(tmp_path: Path) -> None:
    first = served(tmp_path)
    first.updater.offer(make_desired(2, NEW, probation_ms=60_000))
    first.reach(State.PROBATION)
    path = journal_path(first.layout)
    path.write_text(path.read_text().replace('"probation"', '"levitating"'))
    device = TestDevice(tmp_path, OLD, NEW)
    assert device.serving.release_id == "digits-2"
    device.settle()
    assert device.answering() == device.serving.release_id == "digits-1"
    assert "levitating" in device.updater.snapshot.detail


def test_a_release_that_takes_the_process_down_is_given_up(tmp_path: Path) -> None:
    first = served(tmp_path)
    first.updater.offer(make_desired(2, NEW))
    first.reach(State.PROVING)
    for _ in range(11):
        device = TestDevice(tmp_path, OLD, NEW)
        device.prover.poll = lambda: None  # type: ignore[method-assign]  # it never gets that far
        device.step()
    assert device.updater.snapshot.state is State.ROLLED_BACK
    assert "died 10 times in proving" in device.updater.snapshot.detail
    assert device.answering() == "digits-1"


def test_serving_that_answers_with_something_else_is_brought_back(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    device.serving.release_id = "digits-1"
    for _ in range(10):
        device.step()
    assert device.serving.release_id == "digits-2"


def test_the_release_before_goes_only_when_its_slot_is_needed(tmp_path: Path) -> None:
    device = served(tmp_path, THIRD)
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    pointer = read_pointer(device.layout)
    assert pointer is not None
    assert (pointer.previous_slot, pointer.previous_release) == ("a", "digits-1")
    device.updater.offer(make_desired(3, THIRD))
    device.reach(State.PROVING)
    pointer = read_pointer(device.layout)
    assert pointer is not None
    assert (pointer.release_id, pointer.previous_slot, pointer.previous_release) == ("digits-2", None, "")
    assert slot_folder(device.layout, "a").exists()


def test_first_release_that_does_not_hold_leaves_no_pointer(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, NEW)
    fail_requests(device)
    device.updater.offer(make_desired(1, NEW))
    for _ in range(100):
        device.step()
    assert device.updater.snapshot.state is State.ROLLED_BACK
    assert read_pointer(device.layout) is None


def test_the_wire_carries_only_what_is_missing(tmp_path: Path) -> None:
    device = served(tmp_path)
    before = device.wire.published
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    assert device.wire.published - before == 4, "3200 bytes of one file; the card and the empty file are here already"
    assert device.wire.opened[-1] == [NEW.manifest.files[0].sha256.hex()]
