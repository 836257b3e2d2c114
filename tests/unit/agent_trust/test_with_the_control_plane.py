"""The control plane's own metadata, message by message over its broker, into a device: both sides mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.trust.keyring import read_keys
from skerry_agent.update.ports import Approval, ApprovalRequest
from skerry_contract.topics import parse_topic
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import Release
from skerry_server.trust import service
from unit.agent_trust.trust_device import TrustDevice
from unit.trust.plane import START, Plane

ROLES = ["root", "timestamp", "snapshot", "targets", "model-digits", "instructions"]


class World:
    """A control plane and a device."""

    def __init__(self, root: Path) -> None:
        self.plane = Plane.create(root / "plane")
        self.publisher = self.plane.publisher()
        self.device = TrustDevice(root / "device", service.current_root(self.plane.layout), now=START)
        self.plane.broker.subscribe("skerry/v1/trust/+", self._put)

    def _put(self, topic: str, payload: bytes) -> None:
        self.device.mailbox.put(parse_topic(topic).trust_name or "", payload)

    def ask(self, release_id: str = "") -> Approval:
        self.publisher.step()
        if not release_id:
            return self.device.asked.judge(None)
        with self.plane.database.reading() as session:
            envelope = session.get_one(Release, release_id).envelope
        return self.device.asked.judge(ApprovalRequest("digits", release_id, envelope))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_release_is_approved_withdrawn_and_gone_back_to(world: World) -> None:
    world.plane.add_release("digits", 1)
    world.plane.add_release("digits", 2)
    assert world.ask("digits-r2").version == 2
    world.device.asked.floors.commit("digits", 2)
    back = world.ask("digits-r1")
    assert (back.approved, back.final) == (False, True)
    world.plane.change(Release, "digits-r1", approved_version=3)
    assert world.ask("digits-r1").version == 3
    world.plane.change(Release, "digits-r1", state="withdrawn")
    gone = world.ask("digits-r1")
    assert (gone.approved, gone.final) == (False, False)
    assert "not listed" in gone.detail


@pytest.mark.parametrize("role", ROLES)
def test_every_key_can_be_rotated(world: World, role: str) -> None:
    world.plane.add_release("digits", 1)
    assert world.ask("digits-r1").approved
    world.device.asked.floors.commit("digits", 1)
    service.rotate(world.plane.layout, world.plane.settings, role, clock=world.plane.clock)
    world.publisher = world.plane.publisher()
    world.plane.add_release("digits", 2)
    answer = world.ask("digits-r2")
    assert (answer.approved, answer.version) == (True, 2), answer
    keys = read_keys(world.device.places.keys)
    assert keys is not None
    assert load_or_create_key(world.plane.layout).public_key.hex() in keys.current
    world.device.lose_cache()
    assert world.ask("digits-r2").approved


def test_25_days_away_and_everything_was_signed_again(world: World) -> None:
    world.plane.add_release("digits", 1)
    assert world.ask("digits-r1").approved
    world.device.wall = START.replace(year=1970)
    world.plane.wait(days=25)
    world.plane.add_release("digits", 2)
    assert world.ask("digits-r2").approved
    assert world.device.clock.floor_ms == world.plane.now.timestamp() * 1000


def test_a_control_plane_that_stopped_signing_freezes_installs_until_it_is_back(world: World) -> None:
    world.plane.add_release("digits", 1)
    assert world.ask("digits-r1").approved
    world.device.wall = START.replace(day=20)
    with world.plane.database.reading() as session:
        envelope = session.get_one(Release, "digits-r1").envelope
    frozen = world.device.asked.judge(ApprovalRequest("digits", "digits-r1", envelope))
    assert (frozen.approved, frozen.final) == (False, False)
    assert "expired" in frozen.detail
    world.plane.wait(days=19)
    assert world.ask("digits-r1").approved
