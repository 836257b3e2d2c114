"""Whatever happens, in whatever order: devices verify, see exactly what is approved, and nothing ever goes down."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tuf.api.exceptions import ExpiredMetadataError

from skerry_server.fleet.service import set_desired
from skerry_server.releases import service as releases
from skerry_server.store.tables import Device, Release
from skerry_server.trust import service
from skerry_server.trust.publisher import TrustPublisher
from skerry_server.trust.repository import parse
from unit.trust.plane import Killed, Plane, killed_at
from unit.trust.tuf_device import TufDevice

TASKS = ("digits", "har")
ROLES = ("root", "targets", "snapshot", "timestamp", "model-digits", "instructions")

ACTIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(TASKS)),
    st.tuples(st.just("withdraw"), st.integers(0, 5)),
    st.tuples(st.just("want"), st.integers(0, 3)),
    st.tuples(st.just("want"), st.integers(0, 3)),
    st.tuples(st.just("rotate"), st.sampled_from(ROLES)),
    st.tuples(st.just("wait"), st.integers(1, 24 * 80)),
    st.tuples(st.just("clock back"), st.integers(1, 24 * 80)),
    st.tuples(st.just("lose broker"), st.booleans()),
    st.tuples(st.just("restart"), st.none()),
)
STEPS = st.lists(st.tuples(ACTIONS, st.integers(0, 30)), min_size=4, max_size=12)


@pytest.fixture(scope="module", autouse=True)
def _without_flushing() -> Iterator[None]:
    """Processes die here, the machine does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class World:
    """A plane, a device that looks after every step, and one that obeys and keeps a floor."""

    def __init__(self, folder: Path) -> None:
        self.plane = Plane.create(folder / "plane")
        self.plane.add_device("obeys")
        self.publisher: TrustPublisher = self.plane.publisher()
        self.witness: TufDevice = self.plane.device(folder / "witness")
        self.fresh = folder / "fresh"
        self.floors: dict[str, int] = {}
        self.numbers = dict.fromkeys(TASKS, 0)
        self.steps = 0

    def act(self, action: tuple[str, object]) -> None:
        match action:
            case ("publish", str(task)):
                self.numbers[task] += 1
                self.plane.add_release(task, self.numbers[task])
            case ("withdraw", int(place)) if paths := self.plane.paths():
                name = paths[place % len(paths)].partition("/")[2]
                self.plane.change(Release, name, state="withdrawn")
            case ("want", int(place)) if paths := self.plane.paths():
                with self.plane.database.transaction() as session:
                    set_desired(session, "obeys", release_id=paths[place % len(paths)].partition("/")[2])
            case ("rotate", str(role)) if role != "model-digits" or self.numbers["digits"]:
                service.rotate(self.plane.layout, self.plane.settings, role, clock=self.plane.clock)
            case ("wait", int(hours)):
                self.plane.wait(hours=hours)
            case ("clock back", int(hours)):
                self.plane.wait(hours=-hours)
            case ("lose broker", bool(lose)):
                self.plane.broker.reconnect(lose=lose)
            case ("restart", _):
                self.publisher = self.plane.publisher()

    def settle(self) -> None:
        """The controller reaches its goal; then everybody looks."""
        self.publisher.step()
        issued = self.publisher._repository.issued_ms if self.publisher._repository else 0
        self.plane.now = max(self.plane.now, datetime.fromtimestamp(issued / 1000, UTC))
        self.plane.check(self.witness, self.plane.broker.files())
        # A killed process may have left files that no timestamp leads to: they are nobody's.
        assert self.plane.broker.files() == {file.name: file.data for file in parse(self.plane.files()).files}
        self.obey()

    def obey(self) -> None:
        """Installs what is wanted, if the metadata approve it at or above what was committed before."""
        with self.plane.database.reading() as session:
            device = session.get_one(Device, "obeys")
            wanted, active = device.desired_release, device.active_release
            release = session.get(Release, wanted)
        if release is None or release.state != "available" or wanted == active:
            return
        path = f"{release.task}/{wanted}"
        version = self.witness.targets(self.plane.broker.files(), [path], now=self.plane.now)[path].custom["version"]
        floor = self.floors.get(release.task, 0)
        assert version >= floor, f"{wanted} is approved under {version}, the device is at {floor}"
        self.floors[release.task] = version
        self.plane.change(Device, "obeys", active_release=wanted)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
@given(steps=STEPS)
@example(steps=[(("want", 1), 0), (("want", 0), 0), (("want", 1), 0)])  # forward, back, forward again
def test_devices_verify_and_see_exactly_what_is_approved(steps: list[tuple[tuple[str, object], int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        for task in ("digits", "digits", "har"):
            world.act(("publish", task))
        world.settle()
        for action, fatal in steps:
            with killed_at(world.plane.layout.root, fatal):
                try:
                    world.act(action)
                    world.publisher.step()
                except Killed:  # a new process goes on
                    world.publisher = world.plane.publisher()
            # What lies there half way verifies too, wherever somebody was killed.
            with contextlib.suppress(ExpiredMetadataError):  # nobody has signed again yet
                world.witness.refresh(world.plane.files(), now=world.plane.now)
            world.settle()
        world.plane.check(world.plane.device(Path(name) / "new"), world.plane.broker.files())


def test_withdrawn_releases_keep_their_numbers() -> None:
    """The number of an approval is never given twice, even if the release that had it is withdrawn."""
    with tempfile.TemporaryDirectory() as name:
        plane = Plane.create(Path(name) / "plane")
        for number in (1, 2):
            plane.add_release("digits", number)
        plane.change(Release, "digits-r2", state="withdrawn")
        plane.add_device("d1", active_release="digits-r2")
        with plane.database.transaction() as session:
            releases.approve_for(session, "digits-r1", device_id="d1", had=["digits-r2"])
        assert plane.available()["digits/digits-r1"][0] == 3
