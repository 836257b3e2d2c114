"""Every process of a campaign killed, stopped or cut off at every moment: it finishes, or fails and says why.

A chain is a fault at a moment. Processes are real (SuperLink, campaign job, the devices' training processes), the link
between devices and SuperLink is a relay that can be cut, the store is a file. One chain takes ten to twenty seconds,
so `make test` runs :data:`SHORT` and `make soak` runs all.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from integration.federation.fleet import NAMES, Fleet, running_fleet
from integration.federation.rig import poll
from skerry_server.federation import campaign_machine
from skerry_server.federation.service import job_id
from skerry_server.superlink import lane_folder

#: How long a stopped process stands still, a link is cut and the store is locked (seconds).
PAUSE_S = 3.0
HELD = "c02"


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        name: What a person would call it.
        strike: Does it.
        heal: Undoes it after :data:`PAUSE_S`; None for what heals by itself or never.
        fails: What the campaign's detail says when it cannot finish; empty if it must finish.
        settings: Campaign settings of chains with this fault.
    """

    name: str
    strike: Callable[[Chain], None]
    heal: Callable[[Chain], None] | None = None
    fails: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Moment:
    """When it goes wrong; ``reach`` waits for it."""

    name: str
    reach: Callable[[Chain], None]


class Chain:
    """One campaign with one fault."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.campaign_id = ""
        self.hold = fleet.hold(HELD)

    def in_round(self, number: int) -> None:
        """Wait until round ``number``, which is odd, waits for the held device alone.

        Rounds are let through by holding another device, which has answered, before the held one is let go.
        """
        for earlier in range(1, number):
            self.waits_in(earlier)
            hold = self.fleet.hold("c01" if earlier % 2 else HELD)
            self.hold.unlink()
            self.hold = hold
        self.waits_in(number)

    def waits_in(self, number: int) -> None:
        """Wait until two of the three updates of a round are journalled."""
        self.fleet.drive(
            lambda: len(self.fleet.updates(self.campaign_id, number)) == 2, what=f"two updates of round {number}"
        )

    def signal_job(self, number: int) -> None:
        """Signal the campaign's process, which may be starting yet."""
        self.fleet.drive(lambda: self.fleet.job(self.campaign_id).pid > 0, what="the campaign has a process")
        os.kill(self.fleet.job(self.campaign_id).pid, number)

    def signal_device(self, name: str, number: int) -> None:
        """Signal a device's training process."""
        process = self.fleet.agent(name).process
        assert process is not None
        process.send_signal(number)


def kill_superlink(chain: Chain) -> None:
    chain.fleet.link.kill(signal.SIGKILL)


def start_superlink(chain: Chain) -> None:
    chain.fleet.link.start()


def lose_mailbox(chain: Chain) -> None:
    """The SuperLink is killed, and what it kept for the lane is gone from its disk."""
    kill_superlink(chain)
    shutil.rmtree(lane_folder(chain.fleet.context.layout))


def kill_job(chain: Chain) -> None:
    chain.signal_job(signal.SIGKILL)


def kill_devices(*names: str) -> Callable[[Chain], None]:
    def strike(chain: Chain) -> None:
        for name in names:
            chain.fleet.agent(name).kill(signal.SIGKILL)

    return strike


def start_devices(*names: str) -> Callable[[Chain], None]:
    def heal(chain: Chain) -> None:
        for name in names:
            chain.fleet.agent(name).start()

    return heal


def lock_store(chain: Chain) -> None:
    """Another program holds the database for a while, as a backup does."""

    def hold() -> None:
        with sqlite3.connect(chain.fleet.context.layout.root / "skerry.sqlite", timeout=10) as connection:
            connection.execute("BEGIN IMMEDIATE")
            chain.fleet.unlock.wait(PAUSE_S)
            connection.rollback()

    threading.Thread(target=hold, daemon=True).start()


def lose_spool(chain: Chain) -> None:
    """The journalled updates of the open round vanish from the disk, and the campaign's process with them."""
    chain.signal_job(signal.SIGKILL)
    for path in (chain.fleet.context.layout.jobs / job_id(chain.campaign_id)).rglob("round-*/*"):
        if path.is_file():
            path.unlink()


def everything(chain: Chain) -> None:
    kill_superlink(chain)
    kill_job(chain)
    kill_devices(*NAMES)(chain)


def restart_everything(chain: Chain) -> None:
    start_superlink(chain)
    start_devices(*NAMES)(chain)


_HASTE: tuple[tuple[str, Any], ...] = (("round_deadline_ms", 12_000), ("recruiting_deadline_ms", 8_000))

FAULTS = (
    Fault("the SuperLink is killed", kill_superlink, start_superlink),
    Fault(
        "the SuperLink stands still",
        lambda chain: chain.fleet.link.send(signal.SIGSTOP),
        lambda chain: chain.fleet.link.send(signal.SIGCONT),
    ),
    Fault("the campaign's process is killed", kill_job),
    Fault(
        "the campaign's process stands still",
        lambda chain: chain.signal_job(signal.SIGSTOP),
        lambda chain: chain.signal_job(signal.SIGCONT),
    ),
    Fault("a device is killed", kill_devices("c00"), start_devices("c00")),
    Fault("the device that is waited for is killed", kill_devices(HELD), start_devices(HELD)),
    Fault(
        "a device stands still",
        lambda chain: chain.signal_device(HELD, signal.SIGSTOP),
        lambda chain: chain.signal_device(HELD, signal.SIGCONT),
    ),
    Fault("two of three devices are killed for good", kill_devices("c01", HELD), None, "of at least", _HASTE),
    Fault(
        "the link is cut",
        lambda chain: chain.fleet.proxy.cut(),
        lambda chain: chain.fleet.proxy.mend(),
    ),
    Fault("the link is cut for good", lambda chain: chain.fleet.proxy.cut(), None, "of at least", _HASTE),
    Fault("the controller is killed", lambda chain: chain.fleet.restart_controller()),
    Fault("the store is locked", lock_store),
    Fault("the journal's files are lost", lose_spool),
    Fault("the lane's mailbox is lost", lose_mailbox, start_superlink),
    Fault("everything is killed", everything, restart_everything),
)

MOMENTS = (
    Moment("when the campaign starts", lambda chain: None),
    Moment("in round 1", lambda chain: chain.in_round(1)),
    Moment("in the last round", lambda chain: chain.in_round(3)),
)

CHAINS = {f"{fault.name} {moment.name}": (fault, moment) for fault, moment in itertools.product(FAULTS, MOMENTS)}
#: What `make test` runs; the rest is `make soak`.
SHORT = ("everything is killed in the last round",)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


def test_there_are_forty_chains() -> None:
    assert len(CHAINS) >= 40


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.soak) for name in CHAINS]
)
def test_it_ends_as_it_should(fleet: Fleet, name: str) -> None:
    fault, moment = CHAINS[name]
    fleet.mend()
    fleet.up()
    chain = Chain(fleet)
    chain.campaign_id = fleet.ask(rounds=3, quorum=1.0, **dict(fault.settings))
    fleet.drive(lambda: fleet.campaign(chain.campaign_id).state == campaign_machine.RUNNING, what="it runs")
    moment.reach(chain)
    committed = {row.number: row.parameters_sha256 for row in fleet.rounds(chain.campaign_id)}
    journalled = fleet.received(chain.campaign_id)

    fault.strike(chain)
    if fault.heal is not None:
        threading.Event().wait(PAUSE_S)  # the fault's own length, not a wait for something to happen
        fault.heal(chain)
    chain.hold.unlink(missing_ok=True)

    fleet.drive(
        lambda: fleet.campaign(chain.campaign_id).state != campaign_machine.RUNNING, what="it ends", seconds=200
    )
    row = fleet.campaign(chain.campaign_id)
    rounds = fleet.rounds(chain.campaign_id)
    if fault.fails:
        assert row.state == campaign_machine.FAILED, row.detail
        assert fault.fails in row.detail
    else:
        assert row.state == campaign_machine.GATING, row.detail
        assert [round_.number for round_ in rounds] == [1, 2, 3]
        fleet.drop_candidate(chain.campaign_id)
    # What was committed stays as it was; what was journalled was not asked for again.
    assert {one.number: one.parameters_sha256 for one in rounds if one.number in committed} == committed
    if "journal" not in fault.name:
        after = fleet.received(chain.campaign_id)
        assert {key: after[key] for key in journalled} == journalled
    poll(lambda: fleet.job(chain.campaign_id).state in ("done", "failed"), what="its process has ended")
