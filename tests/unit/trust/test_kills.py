"""Whoever changes keys or metadata is killed before every single change of a file: what lies there always verifies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_server.config import ServerLayout, TrustSettings
from skerry_server.trust import service
from unit.trust.plane import Killed, Plane, killed_at
from unit.trust.tuf_device import TufDevice


def rotate(role: str) -> Callable[[Plane], object]:
    return lambda plane: service.rotate(plane.layout, plane.settings, role, clock=plane.clock)


def publish(plane: Plane) -> None:
    plane.publisher().step()


def renew(plane: Plane) -> None:
    service.renew_root(plane.layout, plane.settings, clock=plane.clock)


#: What is done, and the fewest changes of files that it takes (counted by hand: two per file, with its lock, and one
#: for each that is removed).
WORK: dict[str, tuple[Callable[[Plane], object], int]] = {
    "publish": (publish, 9),
    "root": (rotate("root"), 9),
    "renew": (renew, 3),
    "targets": (rotate("targets"), 13),
    "snapshot": (rotate("snapshot"), 10),
    "timestamp": (rotate("timestamp"), 7),
    "model-digits": (rotate("model-digits"), 13),
    "instructions": (rotate("instructions"), 3),
}


@pytest.fixture(autouse=True)
def _without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die in these tests, the machine does not: flushing to the disk would only take time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def before(tmp_path: Path) -> tuple[Plane, TufDevice]:
    """A plane that has published a release, and a device that has seen it."""
    plane = Plane.create(tmp_path / "before")
    plane.add_release("digits", 1)
    plane.publisher().step()
    device = plane.device(tmp_path / "device")
    plane.check(device, plane.files())
    return plane, device


@pytest.mark.parametrize("name", WORK)
def test_killed_before_any_change_of_a_file_the_metadata_verify(
    before: tuple[Plane, TufDevice], tmp_path: Path, name: str
) -> None:
    start, experienced = before
    work, least = WORK[name]
    seen = ["digits/digits-r1"]
    if name == "publish":
        start.add_release("digits", 2)
    number = 0
    while True:
        number += 1
        plane = start.copy(tmp_path / f"plane-{number}")
        device = experienced.copy(tmp_path / f"device-{number}")
        with killed_at(plane.layout.root, number) as disk:
            try:
                work(plane)
            except Killed:
                pass
            else:
                break
        for witness in (device, plane.device(tmp_path / f"fresh-{number}")):
            assert set(seen) <= set(witness.targets(plane.files(), plane.paths(), now=plane.now)), number
        plane.publisher().step()  # the controller goes on
        work(plane)  # the person tries again
        plane.publisher().step()
        plane.check(device, plane.broker.files())
    assert disk.count == number - 1 >= least
    print(f"{name}: {disk.count} points")


def test_killed_at_the_first_start_the_next_one_finishes(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        root = tmp_path / f"plane-{number}"
        root.mkdir()
        with killed_at(root, number) as disk:
            try:
                service.ensure(ServerLayout(root), TrustSettings())
            except Killed:
                pass
            else:
                break
        service.ensure(ServerLayout(root), TrustSettings())
        status = service.status(ServerLayout(root), TrustSettings())
        assert not status.broken, number
        assert [role.version for role in status.roles] == [1, 1, 1, 1, 0]
    assert disk.count == number - 1 >= 24
