"""Chains of states with something going wrong in each of them: state, what happens there, the chain that must come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from skerry_agent.update.journal import read_journal
from skerry_agent.update.ports import Approval, ProofResult
from skerry_agent.update.update_machine import DEADLINES_S, State
from unit.update.device import TestDevice, snapshot
from unit.update.releases import make_desired, make_release

OLD, NEW, THIRD = make_release("digits-1"), make_release("digits-2"), make_release("digits-3")
WORK = ["need", "downloading", "verifying", "staging", "proving", "activating", "probation"]
GOOD = [*WORK, "committed"]
WITHDRAWN = Approval(False, True, "it is not in the targets any more")
EXPIRED = Approval(False, False, "the timestamp has expired")


def served(root: Path) -> TestDevice:
    device = TestDevice(root, OLD, NEW, THIRD)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.events.clear()
    return device


def supersede(device: TestDevice) -> None:
    device.updater.offer(make_desired(3, THIRD))


def stop_asking(device: TestDevice) -> None:
    device.updater.offer(make_desired(3, None))


def withdraw(device: TestDevice) -> None:
    device.approvals.refuse["digits-2"] = WITHDRAWN


def expire(device: TestDevice) -> None:
    """The metadata expires; newer ones come a little later."""
    device.approvals.refuse["digits-2"] = EXPIRED
    later(device, lambda: device.approvals.refuse.clear())


def close_window(device: TestDevice) -> None:
    device.policy.closed = "waits for a maintenance window"
    later(device, lambda: setattr(device.policy, "closed", ""))


def lose_serving_for_a_while(device: TestDevice) -> None:
    device.serving.away = True
    later(device, lambda: setattr(device.serving, "away", False))


def lose_serving(device: TestDevice) -> None:
    device.serving.away = True


def kill_the_prover(device: TestDevice) -> None:
    """The proof dies once, by a signal."""
    prove = device.prover.poll

    def poll() -> ProofResult | None:
        device.prover.poll = prove  # type: ignore[method-assign]  # this one time only
        return ProofResult(False, "the proof ended with status -9: no output")

    device.prover.poll = poll  # type: ignore[method-assign]


def jump_ahead(device: TestDevice) -> None:
    device.wall_ms += 10 * 365 * 86_400_000


def jump_back(device: TestDevice) -> None:
    device.wall_ms = 0


def later(device: TestDevice, act: Callable[[], None], *, seconds: float = 20.0) -> None:
    due, step = device.now + seconds, device.step

    def stepping() -> None:
        if device.now >= due:
            act()
            device.step = step  # type: ignore[method-assign]  # the plain one again
        step()

    device.step = stepping  # type: ignore[method-assign]  # something happens while it turns


@dataclass(frozen=True)
class Scenario:
    """``chain`` is what follows after ``state``; ``says`` must be in the last detail of the update that went wrong."""

    state: str
    happens: Callable[[TestDevice], None]
    chain: list[str]
    answers: str
    says: str = ""


def rest(state: str) -> list[str]:
    return GOOD[GOOD.index(state) + 1 :]


BEFORE_SWITCH, AFTER_SWITCH = WORK[:5], WORK[5:]
SCENARIOS = [
    *(Scenario(state, supersede, ["idle", *GOOD], "digits-3", "asks for something else") for state in BEFORE_SWITCH),
    *(Scenario(state, supersede, [*rest(state), *GOOD], "digits-3") for state in AFTER_SWITCH),
    *(Scenario(state, stop_asking, ["idle"], "digits-1") for state in BEFORE_SWITCH),
    *(Scenario(state, stop_asking, rest(state), "digits-2") for state in AFTER_SWITCH),
    Scenario("need", withdraw, ["rolled_back"], "digits-1", "not approved: it is not in the targets any more"),
    *(
        Scenario(state, withdraw, [*rest(state)[:-3], "rolled_back"], "digits-1", "not approved any more: it is not")
        for state in WORK[1:5]
    ),
    *(Scenario(state, withdraw, rest(state), "digits-2") for state in AFTER_SWITCH),
    Scenario("need", expire, rest("need"), "digits-2"),
    *(Scenario(state, expire, [*rest(state)[:-3], *GOOD], "digits-2") for state in WORK[1:5]),
    *(Scenario(state, expire, rest(state), "digits-2") for state in AFTER_SWITCH),
    Scenario("need", close_window, rest("need"), "digits-2"),
    *(Scenario(state, close_window, [*rest(state)[:-3], *GOOD], "digits-2") for state in WORK[1:5]),
    *(Scenario(state, close_window, rest(state), "digits-2") for state in AFTER_SWITCH),
    *(Scenario(state, lose_serving_for_a_while, rest(state), "digits-2") for state in WORK),
    *(Scenario(state, lose_serving, [*rest(state)[:-2], "rolled_back"], "digits-1", "serving") for state in WORK[:6]),
    Scenario(
        "probation", lose_serving, ["rolled_back"], "digits-1", "serving has not answered with a release for 45 s"
    ),
    *(
        Scenario(state, kill_the_prover, [*rest(state)[:-3], *GOOD[1:]], "digits-2", "status -9")
        for state in BEFORE_SWITCH
    ),
    *(Scenario(state, jump_ahead, rest(state), "digits-2") for state in WORK),
    *(Scenario(state, jump_back, rest(state), "digits-2") for state in WORK),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.happens.__name__}-in-{scenario.state}")
def test_scenario(scenario: Scenario, tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW, probation_ms=2_000))
    device.reach(State(scenario.state))
    device.events.clear()
    scenario.happens(device)
    if scenario.happens is lose_serving:
        for _ in range(4000):
            device.step()
        device.serving.away = False
    device.settle(turns=1500)
    assert device.chain == scenario.chain
    assert device.answering() == device.serving.release_id == scenario.answers
    assert any(scenario.says in event.detail for event in device.events)
    counted = 1 if scenario.happens is kill_the_prover else 0
    counted += scenario.happens is lose_serving and scenario.state == "probation"
    assert read_journal(device.layout).failures == ({NEW.digest: 1} if counted else {}), "only the artifact is blamed"


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (expire, "waits for the signed metadata: the timestamp has expired"),
        (close_window, "waits for a maintenance window"),
        (lambda device: setattr(device.approvals, "silent", True), "waits for the signed metadata"),
        (lambda device: setattr(device.policy, "metered", "waits for a network that is not metered"), "not metered"),
        (
            lambda device: setattr(device.disk, "free", 4_199),
            "waits for free space: 3200 bytes to write and 1000 in reserve, 4199 free",
        ),
    ],
    ids=["expired", "window", "silent", "metered", "space"],
)
def test_need_says_what_it_waits_for_and_has_a_deadline(
    tmp_path: Path, prepare: Callable[[TestDevice], None], says: str
) -> None:
    device = served(tmp_path)
    before = {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("update/journal")}
    prepare(device)
    step = TestDevice.step
    device.updater.offer(make_desired(2, NEW))
    for _ in range(30):
        step(device)
    assert device.updater.snapshot.state is State.NEED
    assert says in device.updater.snapshot.detail
    now = {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("update/journal")}
    assert now == before, "nothing was fetched"
    device.now += DEADLINES_S[State.NEED] + 1
    step(device)
    assert device.chain[-1] == "rolled_back"
    assert says in device.updater.snapshot.detail
    assert read_journal(device.layout).failures == {}
    assert device.answering() == "digits-1"


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.approvals.refuse["digits-2"] = EXPIRED
    device.policy.closed, device.policy.metered, device.disk.free = "no window", "no network", 0
    device.updater.offer(make_desired(2, NEW))
    for _ in range(5):
        device.step()
    assert device.updater.snapshot.detail == (
        "waits for the signed metadata: the timestamp has expired; no window; no network;"
        " waits for free space: 3200 bytes to write and 1000 in reserve, 0 free"
    )
    assert device.policy.transfers[-1] == 3200, "the shared card and the empty file are here already"


def test_a_network_that_becomes_metered_holds_a_download_and_keeps_its_chunks(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.wire.spoil = lambda chunk: [chunk] if chunk.index < 2 else []
    device.reach(State.DOWNLOADING)
    device.policy.metered = "waits for a network that is not metered"
    device.reach(State.NEED)
    for _ in range(20):
        device.step()
    assert device.updater.snapshot.detail == "waits for a network that is not metered"
    device.policy.metered = ""
    device.wire.spoil = lambda chunk: [chunk]
    before = device.wire.published
    device.settle()
    assert device.chain == ["need", "downloading", *GOOD]
    assert device.wire.published - before == 2, "four chunks, of which two had come"


def test_an_older_version_than_the_committed_one_is_refused_for_good(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.settle()
    assert device.approvals.floor() == 2
    device.updater.offer(make_desired(3, OLD))
    device.settle()
    assert device.updater.snapshot.state is State.ROLLED_BACK
    assert device.updater.snapshot.detail == "not approved: version 1 is below 2"
    assert device.answering() == device.serving.release_id == "digits-2"
    device.approvals.versions["digits-1"] = 3
    device.updater.offer(make_desired(4, OLD))
    device.settle()
    assert device.answering() == "digits-1"
    assert device.approvals.floor() == 3


def test_another_release_of_the_same_files_is_another_release(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.reach(State.PROVING)
    twin = make_release("digits-4", files=NEW.files)
    device.updater.offer(make_desired(3, twin))
    device.settle()
    assert device.answering() == device.serving.release_id == "digits-4"
    assert device.chain == [*WORK[:5], "idle", *GOOD]


def test_an_approval_that_is_not_answered_after_the_proof_waits_in_need(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.updater.offer(make_desired(2, NEW))
    device.reach(State.PROVING)
    device.approvals.silent = True
    for _ in range(1500):
        device.step()
    assert device.updater.snapshot.state is State.NEED
    device.approvals.silent = False
    device.settle(turns=4000)
    assert device.answering() == "digits-2"
    assert device.chain == [*WORK[:5], *GOOD]
