"""The thread that asks: questions, news, giving up, and what the update machine hears."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry_agent.trust.approvals import TufApprovals
from skerry_agent.trust.judge import Judge
from skerry_agent.trust.keyring import read_keys
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.update.ports import Approval
from unit.agent_trust.repository import Repository, asks, deliver
from unit.agent_trust.trust_device import ENROLLED, TrustDevice, experienced

Wait = Callable[..., None]


class Asked:
    """A started :class:`TufApprovals` and the answers that it gave."""

    def __init__(self, device: TrustDevice, wait_until: Wait, *, pause_s: float = 0.0) -> None:
        self.mailbox = TrustMailbox()
        self.judge = Judge(
            device.places, self.mailbox, device.clock, enrolled=ENROLLED, deadline_s=1e6, disk=device.disk
        )
        self.approvals = TufApprovals(self.judge, self.mailbox, pause_s=pause_s, recheck_s=1e6)
        self._wait = wait_until
        self.approvals.start()

    def answer(self) -> Approval:
        answers: list[Approval] = []

        def arrived() -> bool:
            answer = self.approvals.poll()
            if answer is not None:
                answers.append(answer)
            return bool(answers)

        self._wait(arrived, what="an answer")
        return answers[0]


@pytest.fixture
def world(tmp_path: Path, wait_until: Wait) -> Iterator[tuple[Repository, TrustDevice, Asked]]:
    repository, device, _old = experienced(tmp_path)
    asked = Asked(device, wait_until)
    yield repository, device, asked
    asked.approvals.close()
    assert "trust" not in [thread.name for thread in threading.enumerate()]


World = tuple[Repository, TrustDevice, Asked]


def test_an_approval_and_its_commit(world: World) -> None:
    repository, device, asked = world
    repository.approve("c", 3)
    deliver(asked.mailbox, repository.publish())
    asked.approvals.ask(asks("c"))
    assert asked.answer() == Approval(True, True, "", 3)
    assert asked.approvals.poll() is None
    asked.approvals.committed("digits", 3)
    assert device.floors.committed["digits"].version == 3
    asked.approvals.ask(asks("b"))
    assert asked.answer().final


def test_an_open_question_hears_of_news(world: World) -> None:
    repository, _device, asked = world
    deliver(asked.mailbox, repository.publish())
    asked.approvals.ask(asks("c"))
    first = asked.answer()
    assert (first.approved, first.final) == (False, False)
    assert "not listed" in first.detail
    repository.approve("c", 3)
    deliver(asked.mailbox, repository.publish())
    while not (answer := asked.answer()).approved:
        assert not answer.final, answer
    assert answer.version == 3


def test_the_same_question_again_is_answered_again(world: World) -> None:
    repository, _device, asked = world
    deliver(asked.mailbox, repository.publish())
    for _ in range(3):
        asked.approvals.ask(asks("c"))
        assert "not listed" in asked.answer().detail


@pytest.mark.parametrize("give_up", ["another question", "stop"])
def test_a_question_that_waits_for_files_can_be_given_up(world: World, give_up: str) -> None:
    repository, _device, asked = world
    repository.approve("c", 3)
    files = repository.publish()
    deliver(asked.mailbox, files, withheld=(repository.name_of("snapshot"),))
    asked.approvals.ask(asks("c"))
    if give_up == "stop":
        asked.approvals.stop()
        assert asked.approvals.poll() is None
    asked.approvals.ask(asks("b"))
    deliver(asked.mailbox, files)
    assert asked.answer() == Approval(True, True, "", 2)


def test_closing_ends_a_wait(tmp_path: Path, wait_until: Wait) -> None:
    repository, device, _old = experienced(tmp_path)
    asked = Asked(device, wait_until)
    files = repository.publish()
    deliver(asked.mailbox, files, withheld=(repository.name_of("snapshot"),))
    asked.approvals.ask(asks("b"))
    asked.approvals.close()
    assert "trust" not in [thread.name for thread in threading.enumerate()]
    assert asked.approvals.poll() is None


def test_closing_without_a_start() -> None:
    mailbox = TrustMailbox()
    approvals = TufApprovals(None, mailbox)  # type: ignore[arg-type] # the judge is not asked
    approvals.close()


def test_news_without_a_question_bring_keys(world: World, wait_until: Wait) -> None:
    repository, device, asked = world
    repository.list_keys(["dd" * 32])
    deliver(asked.mailbox, repository.publish())

    def learnt() -> bool:
        keys = read_keys(device.places.keys)
        return keys is not None and keys.current == ("dd" * 32,)

    wait_until(learnt, what="the new keys")
    assert asked.approvals.poll() is None


class BrokenJudge(Judge):
    """Has a bug."""

    def judge(self, request: object, given_up: object = None) -> Approval:
        raise ZeroDivisionError("a bug")


def test_a_bug_is_an_answer_and_not_a_dead_thread(tmp_path: Path, wait_until: Wait) -> None:
    _repository, device, _old = experienced(tmp_path)
    mailbox = TrustMailbox()
    judge = BrokenJudge(device.places, mailbox, device.clock, enrolled=ENROLLED)
    asked = Asked(device, wait_until)
    asked.approvals.close()
    asked.approvals = TufApprovals(judge, mailbox)
    asked.approvals.start()
    try:
        asked.approvals.ask(asks("b"))
        answer = asked.answer()
        assert (answer.approved, answer.final) == (False, False)
        assert "could not be judged" in answer.detail
    finally:
        asked.approvals.close()


def test_damaged_floors_do_not_keep_a_proven_release_from_being_committed(world: World) -> None:
    _repository, device, asked = world
    device.places.floors.write_bytes(b"\0")
    asked.approvals.committed("digits", 3)
    assert device.places.floors.read_bytes() == b"\0"
