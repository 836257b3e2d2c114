"""The SuperLink's node keys follow the store: rules by hand, then the controller over a SuperLink that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from skerry_server.federation.flower.node_keys import NodeKeysController
from skerry_server.federation.flower.node_registry import Changes, NodeRegistry, RegisteredNode, RegistryError, plan
from skerry_server.store import Database
from skerry_server.store.tables import Base, Device


class FakeSuperLink:
    """A node list as the SuperLink keeps it: keys are unique for ever; it can be away, or go away in the middle."""

    def __init__(self) -> None:
        self.rows: list[RegisteredNode] = []
        self.calls: list[str] = []
        self.away = False
        #: How many more changes it takes before it goes away.
        self.patience = 10**9
        self.bad_keys: set[bytes] = set()

    def nodes(self) -> list[RegisteredNode]:
        self._answer("list")
        return list(self.rows)

    def register(self, device_id: str, public_key: bytes) -> bool:
        self._answer(f"register {device_id}")
        if public_key in self.bad_keys or any(row.public_key == public_key for row in self.rows):
            return False
        self.rows.append(RegisteredNode(len(self.rows) + 1, public_key, f"device/{device_id}", active=True))
        return True

    def unregister(self, node_id: int) -> None:
        self._answer(f"unregister {node_id}")
        self.rows = [
            RegisteredNode(row.node_id, row.public_key, row.name, active=row.active and row.node_id != node_id)
            for row in self.rows
        ]

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if call != "list":
            self.patience -= 1
        if self.away or self.patience < 0:
            raise RegistryError("connection refused")

    def active(self) -> dict[str, bytes]:
        return {row.name: row.public_key for row in self.rows if row.active}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rig:
    def __init__(self, path: Path) -> None:
        self.database = Database(f"sqlite:///{path}")
        Base.metadata.create_all(self.database.engine)
        self.link = FakeSuperLink()
        self.clock = Clock()
        self.opened = 0
        self.controller = self.controller_with(changes=500)

    def controller_with(self, *, changes: int) -> NodeKeysController:
        return NodeKeysController(self.database, self._open, look_s=10.0, changes=changes, monotonic=self.clock)

    def _open(self) -> NodeRegistry:
        self.opened += 1
        return self.link

    def enrol(self, device_id: str, key: str, *, at_ms: int) -> None:
        with self.database.transaction() as session:
            session.merge(Device(id=device_id, enrolled_ms=at_ms, node_public_key=key, revoked=False))

    def revoke(self, device_id: str) -> None:
        with self.database.transaction() as session:
            session.execute(sa.update(Device).where(Device.id == device_id).values(revoked=True))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "store.sqlite")
    yield rig
    rig.database.close()


def node(node_id: int, key: bytes, name: str, *, active: bool = True) -> RegisteredNode:
    return RegisteredNode(node_id, key, name, active=active)


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        ({}, [], Changes((), (), (), more=False)),
        ({"a": b"1"}, [], Changes((), (("a", b"1"),), (), more=False)),
        ({"a": b"1"}, [node(5, b"1", "device/a")], Changes((), (), (), more=False)),
        # Revoked, or not of this store.
        ({}, [node(5, b"1", "device/a")], Changes((5,), (), (), more=False)),
        # Enrolled anew with another key.
        ({"a": b"2"}, [node(5, b"1", "device/a")], Changes((5,), (("a", b"2"),), (), more=False)),
        # Enrolled anew with the key that was cut off: it stays out, and is told apart.
        ({"a": b"1"}, [node(5, b"1", "device/a", active=False)], Changes((), (), ("a",), more=False)),
        # An operator's own nodes are left alone, also one that has a device's key.
        ({}, [node(5, b"1", "lab"), node(6, b"2", "")], Changes((), (), (), more=False)),
        ({"a": b"1"}, [node(5, b"1", "lab")], Changes((), (), (), more=False)),
        # Two devices with one key would be one node.
        ({"b": b"1", "a": b"1"}, [], Changes((), (("a", b"1"),), (), more=False)),
        # The key is registered for a device that has another now: it is cut off, and nobody gets it.
        ({"b": b"1"}, [node(5, b"1", "device/a")], Changes((5,), (), ("b",), more=False)),
    ],
)
def test_what_is_changed(wanted: dict[str, bytes], known: list[RegisteredNode], expected: Changes) -> None:
    assert plan(wanted, known, limit=10) == expected


def test_cutting_off_comes_first_when_there_is_room_for_two() -> None:
    known = [node(7, b"x", "device/x"), node(6, b"y", "device/y"), node(5, b"z", "device/z")]
    assert plan({"a": b"1"}, known, limit=2) == Changes((5, 6), (), (), more=True)
    assert plan({"a": b"1", "b": b"2"}, known[:1], limit=2) == Changes((7,), (("a", b"1"),), (), more=True)


_KEYS = st.sampled_from([b"1", b"2", b"3", b"4"])
_NAMES = st.sampled_from(["a", "b", "c"])


@given(
    st.dictionaries(_NAMES, _KEYS),
    st.lists(
        st.tuples(_KEYS, st.sampled_from(["device/a", "device/b", "lab"]), st.booleans()), unique_by=lambda r: r[0]
    ),
    st.integers(1, 4),
)
def test_it_ends_at_the_wanted_list_whatever_was_there(
    wanted: dict[str, bytes], rows: list[tuple[bytes, str, bool]], limit: int
) -> None:
    link = FakeSuperLink()
    link.rows = [node(index + 1, key, name, active=active) for index, (key, name, active) in enumerate(rows)]
    operators = {row.public_key for row in link.rows if row.active and not row.name.startswith("device/")}
    for _ in range(10):
        changes = plan(wanted, link.nodes(), limit=limit)
        assert len(changes.unregister) + len(changes.register) <= limit
        for node_id in changes.unregister:
            link.unregister(node_id)
        for device, key in changes.register:
            assert link.register(device, key)
        if not changes.more:
            break
    else:
        raise AssertionError("it does not end")
    active = link.active()
    assert {key for name, key in active.items() if name == "lab"} <= operators
    devices = {name.removeprefix("device/"): key for name, key in active.items() if name.startswith("device/")}
    assert all(wanted.get(device) == key for device, key in devices.items())
    again = plan(wanted, link.nodes(), limit=limit)
    assert (again.unregister, again.register) == ((), ())


def test_a_device_is_registered_at_the_next_step_and_cut_off_when_it_is_revoked(rig: Rig) -> None:
    rig.controller.step()
    rig.enrol("a", "key-a", at_ms=1)
    rig.controller.step()
    assert rig.link.active() == {"device/a": b"key-a"}
    rig.revoke("a")
    rig.controller.step()
    assert rig.link.active() == {}
    rig.enrol("a", "key-a2", at_ms=2)
    rig.controller.step()
    assert rig.link.active() == {"device/a": b"key-a2"}
    assert rig.opened == 1


def test_the_superlink_is_left_in_peace_while_nothing_changes(rig: Rig) -> None:
    rig.enrol("a", "key-a", at_ms=1)
    rig.controller.step()
    asked = list(rig.link.calls)
    rig.clock.now += 9.9
    rig.controller.step()
    assert rig.link.calls == asked
    rig.clock.now += 0.2
    rig.controller.step()
    assert rig.link.calls == [*asked, "list"]


def test_a_superlink_without_memory_gets_the_devices_again(rig: Rig) -> None:
    rig.enrol("a", "key-a", at_ms=1)
    rig.enrol("b", "key-b", at_ms=1)
    rig.controller.step()
    rig.link.rows.clear()
    rig.clock.now += 10.0
    rig.controller.step()
    assert rig.link.active() == {"device/a": b"key-a", "device/b": b"key-b"}


def test_a_superlink_that_is_away_is_asked_again_and_goes_away_in_the_middle(rig: Rig) -> None:
    for number in range(4):
        rig.enrol(f"d{number}", f"key-{number}", at_ms=number)
    rig.link.away = True
    rig.controller.step()
    assert rig.link.active() == {}
    rig.link.away, rig.link.patience = False, 2
    rig.controller.step()
    assert sorted(rig.link.active()) == ["device/d0", "device/d1"]
    rig.link.patience = 10
    rig.controller.step()
    assert sorted(rig.link.active()) == ["device/d0", "device/d1", "device/d2", "device/d3"]
    assert rig.link.calls.count("register d0") == 1


def test_a_step_is_bounded_and_the_next_goes_on_without_a_change_of_the_store(rig: Rig) -> None:
    for number in range(5):
        rig.enrol(f"d{number}", f"key-{number}", at_ms=number)
    controller = rig.controller_with(changes=2)
    counts = []
    for _ in range(4):
        controller.step()
        counts.append(len(rig.link.active()))
    assert counts == [2, 4, 5, 5]


def test_keys_that_are_refused_do_not_keep_the_others_out(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.link.bad_keys = {b"bad-0", b"bad-1"}
    for number in range(2):
        rig.enrol(f"a-bad-{number}", f"bad-{number}", at_ms=number)
        rig.enrol(f"good-{number}", f"good-{number}", at_ms=number)
    controller = rig.controller_with(changes=2)
    for _ in range(3):
        controller.step()
    assert sorted(rig.link.active()) == ["device/good-0", "device/good-1"]
    rig.clock.now += 10.0
    controller.step()
    said = [record.getMessage() for record in caplog.records if "cannot train" in record.getMessage()]
    assert len(said) == 2, "each device once"
    assert all("a-bad-" in line for line in said)
