"""Files of the trust folder that are damaged or gone: what is lost, what is refused, what comes back by itself."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_agent.errors import DeviceError
from skerry_agent.trust.anchor import keep_root
from skerry_agent.trust.floors import Floors, TaskFloor
from skerry_contract.limits import TRUST_FILE_BYTES
from unit.agent_trust.repository import MODEL
from unit.agent_trust.trust_device import HastyDisk, TrustDevice, experienced


def garbage(path: Path) -> None:
    path.write_bytes(b"\0" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(TRUST_FILE_BYTES + 1)


def other_json(path: Path) -> None:
    path.write_text("[]")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: list[Callable[[Path], None]] = [garbage, empty, huge, other_json, folder, flipped]
CACHED = ["timestamp.json", "snapshot.json", "targets.json", f"{MODEL}.json", "root_history/1.root.json"]


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_fetched_again(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    repository, device, old = experienced(tmp_path)
    before = device.kept()
    damage(device.places.metadata / name)
    refused = device.judge(old, "b")
    assert not refused.approved
    assert {name: data for name, data in device.kept().items() if not name.startswith("damaged/")} == before
    assert device.judge(repository.files, "b").approved
    if damage not in (flipped, folder):
        assert (device.places.damaged / Path(name).name).exists()


def test_what_ngclient_left_behind_is_removed(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    (device.places.metadata / "tmpabc123").write_bytes(b"half")
    shutil.rmtree(device.places.metadata / "root_history")
    (device.places.metadata / "root_history").write_bytes(b"a file")
    (device.places.metadata / "root.json").unlink(missing_ok=True)
    (device.places.metadata / "root.json").mkdir()
    assert device.judge(repository.files, "b").approved
    assert not (device.places.metadata / "tmpabc123").exists()
    assert sorted(path.name for path in device.places.damaged.iterdir()) == ["root.json", "root_history"]


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    device.lose_cache()
    device.places.metadata.write_bytes(b"a file")
    assert device.judge(repository.files, "b").approved


def remove(path: Path) -> None:
    path.unlink()


def lower(path: Path) -> None:
    """What somebody does who edits the file: the digest does not hold."""
    document = json.loads(path.read_bytes())
    document["floors"] = document["floors"].replace('"version": 2', '"version": 1')
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("damage", [*DAMAGES, remove, lower])
def test_damaged_floors_block_installs_and_say_so(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    repository, device, _old = experienced(tmp_path)
    good = device.places.floors.read_bytes()
    damage(device.places.floors)
    device.restart()
    before = device.everything()

    answer = device.judge(repository.files, "b")

    assert (answer.approved, answer.final) == (False, False)
    assert "floors.json" in answer.detail
    assert "enrol the device again" in answer.detail
    assert device.everything() == before
    with pytest.raises(DeviceError, match=r"floors\.json"):
        device.asked.floors.commit("digits", 3)

    if damage is folder:
        shutil.rmtree(device.places.floors)
    device.places.floors.write_bytes(good)
    assert device.judge(repository.files, "b").approved


@pytest.mark.parametrize("damage", [garbage, folder])
def test_enrolling_again_repairs_damaged_floors(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    repository, device, _old = experienced(tmp_path)
    damage(device.places.floors)
    keep_root(device.places, repository.files["1.root.json"], HastyDisk())
    device.restart()
    assert device.judge(repository.files, "b").approved


def test_the_same_anchor_keeps_all_and_another_one_starts_anew(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    anchor = repository.files["1.root.json"]
    kept = device.kept()
    keep_root(device.places, anchor, HastyDisk())
    assert device.kept() == kept
    other = repository.fork()
    other.publish_root()
    keep_root(device.places, other.files["2.root.json"], HastyDisk())
    assert sorted(device.everything()) == ["clock.json", "root.json"]
    with pytest.raises(DeviceError, match="trust anchor of 0 bytes"):
        keep_root(device.places, b"", HastyDisk())


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * (TRUST_FILE_BYTES + 1), b"[" * 1000])
def test_a_damaged_anchor_blocks_installs(tmp_path: Path, content: bytes) -> None:
    repository, device, _old = experienced(tmp_path)
    device.places.root.write_bytes(content)
    before = device.kept()
    answer = device.judge(repository.files, "b")
    assert (answer.approved, answer.final) == (False, False)
    assert answer.detail
    assert device.kept() == before


class FullDisk(HastyDisk):
    """Has no room for a file of a name."""

    def __init__(self, name: str) -> None:
        self.full_for = name

    def create(self, path: Path, *, mode: int = 0o600, truncate: bool = True) -> int:
        if self.full_for and self.full_for in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return super().create(path, mode=mode, truncate=truncate)


@pytest.mark.parametrize("name", ["floors.json", "keys.json"])
def test_a_full_disk_approves_nothing_that_it_cannot_remember(tmp_path: Path, name: str) -> None:
    repository, device, _old = experienced(tmp_path)
    full = FullDisk(name)
    device = TrustDevice(tmp_path, repository.files["1.root.json"], disk=full)
    repository.approve("c", 3)
    repository.list_keys(["bb" * 32])
    floors, keys = device.places.floors.read_bytes(), device.places.keys.read_bytes()
    answer = device.judge(repository.publish(), "c")
    assert (answer.approved, answer.final) == (False, False)
    assert "No space left" in answer.detail
    assert device.places.keys.read_bytes() == keys
    if name == "floors.json":
        assert device.places.floors.read_bytes() == floors
        with pytest.raises(OSError, match="No space left"):
            device.asked.floors.commit("digits", 3)
    full.full_for = ""
    assert device.judge(repository.files, "c").approved


def test_what_was_approved_survives_a_restart_until_it_is_committed(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    repository.approve("c", 3)
    files = repository.publish()
    assert device.judge(files, "c").approved
    again = TrustDevice(tmp_path, files["1.root.json"])
    again.asked.floors.commit("digits", 3)
    assert again.floors.committed["digits"].release_id == "c"
    assert again.judge(files, "c").approved
    assert again.judge(files, "b").final


def test_a_commit_that_nothing_approved_still_raises_the_floor() -> None:
    floors = Floors(committed={"digits": TaskFloor(4, "b", "keys")})
    assert floors.commit("digits", 3) is floors
    assert floors.commit("digits", 5).committed["digits"] == TaskFloor(5, "", "keys")
