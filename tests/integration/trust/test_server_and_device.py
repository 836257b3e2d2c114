"""What the control plane signs, judged by the agent's own code: both sides mean the same by it."""

from __future__ import annotations

from pathlib import Path

from skerry_agent.update.ports import Approval, ApprovalRequest
from skerry_server.fleet.service import set_desired
from skerry_server.store.tables import Device, Release
from skerry_server.trust import service
from unit.agent_trust.trust_device import TrustDevice
from unit.trust.plane import Plane


def test_a_device_follows_approvals_rollbacks_and_rotations(tmp_path: Path) -> None:
    plane = Plane.create(tmp_path / "plane")
    publisher = plane.publisher()
    device = TrustDevice(tmp_path / "device", service.current_root(plane.layout), now=plane.now)

    def judge(release_id: str) -> Approval:
        publisher.step()
        device.wall = plane.now
        envelope = plane.available().get(f"digits/{release_id}", (0, b"withdrawn"))[1]
        return device.judge(plane.broker.files(), ApprovalRequest("digits", release_id, envelope))

    def run(release_id: str, version: int) -> None:
        """The device installs and commits it under ``version``."""
        with plane.database.transaction() as session:
            set_desired(session, "d1", release_id=release_id)
        assert judge(release_id) == Approval(True, True, "", version)
        device.asked.floors.commit("digits", version)
        plane.change(Device, "d1", active_release=release_id)

    plane.add_device("d1")
    for number in (1, 2):
        plane.add_release("digits", number)
        run(f"digits-r{number}", number)
    assert not judge("digits-r1").approved  # below what it has, until somebody wants it
    run("digits-r1", 3)
    run("digits-r2", 4)
    for number, role in enumerate(
        ("timestamp", "root", "snapshot", "model-digits", "targets", "instructions"), start=3
    ):
        service.rotate(plane.layout, plane.settings, role, clock=plane.clock)
        plane.add_release("digits", number)
        run(f"digits-r{number}", number + 2)
    plane.change(Release, "digits-r3", state="withdrawn")
    assert not judge("digits-r3").approved
    plane.wait(days=25)  # nobody signed meanwhile
    run("digits-r8", 10)
    assert device.clock.floor_ms >= round(plane.now.timestamp() * 1000) - 60_000
