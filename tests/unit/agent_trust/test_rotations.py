"""Keys that change hands, versions that an attacker drove up, and clocks that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Signed

from unit.agent_trust.repository import MODEL, START, TASK, Repository, signer
from unit.agent_trust.trust_device import TrustDevice, experienced


@dataclass(frozen=True)
class Step:
    keys: tuple[int, ...]
    threshold: int
    signed: tuple[int, ...]


#: Roots in their order; the last is refused where it says so.
CHAINS: list[tuple[str, list[Step], bool]] = [
    ("one key after another", [Step((1,), 1, (1,)), Step((2,), 1, (2, 1)), Step((2,), 1, (2,))], True),
    ("signatures that nobody needs", [Step((1,), 1, (3, 1, 4)), Step((2,), 1, (3, 2, 1, 4))], True),
    ("not signed with the old key", [Step((1,), 1, (1,)), Step((2,), 1, (2, 3, 4))], False),
    ("not signed with the new key", [Step((1,), 1, (1,)), Step((2,), 1, (1, 3, 4))], False),
    (
        "3 of 5, one key changes",
        [Step((0, 1, 2, 3, 4), 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 4, 1))],
        True,
    ),
    ("3 of 5, not 3 new keys", [Step((0, 1, 2, 3, 4), 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 2, 4))], False),
    ("3 of 5, not 3 old keys", [Step((0, 1, 2, 3, 4), 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 4, 5))], False),
    (
        "all five change",
        [
            Step((0, 1, 2, 3, 4), 3, (0, 2, 4)),
            Step((5, 6, 7, 8, 9), 3, (0, 2, 4, 5, 6, 7)),
            Step((5, 6, 7, 8, 9), 3, (5, 6, 7)),
        ],
        True,
    ),
    ("threshold up", [Step((1, 2, 3), 1, (1,)), Step((1, 2, 3), 2, (1, 2))], True),
    ("threshold up, not reached", [Step((1, 2, 3), 1, (1,)), Step((1, 2, 3), 2, (2,))], False),
    ("threshold down", [Step((1, 2, 3), 2, (1, 2)), Step((1, 2, 3), 1, (1, 2)), Step((1, 2, 3), 1, (1,))], True),
    ("threshold down, old one not reached", [Step((1, 2, 3), 2, (1, 2)), Step((1, 2, 3), 1, (1,))], False),
]


@pytest.mark.parametrize(("steps", "holds"), [chain[1:] for chain in CHAINS], ids=[chain[0] for chain in CHAINS])
def test_a_chain_of_roots(tmp_path: Path, steps: list[Step], holds: bool) -> None:
    repository = Repository()
    repository.root.version = 0
    repository.files.clear()
    for step in steps:
        repository.rotate("root", [f"chain-{key}" for key in step.keys], threshold=step.threshold)
        repository.signers["root"] = [signer(f"chain-{key}") for key in step.signed]
        repository.publish_root()
    repository.approve("a", 1)
    device = TrustDevice(tmp_path, repository.files["1.root.json"])
    answer = device.judge(repository.publish(), "a")
    assert answer.approved is holds
    if holds:
        assert device.versions()["root"] == len(steps)
    else:
        assert "root was signed by" in answer.detail
        assert device.floors.roles == {}


def test_an_expired_root_in_between_is_no_obstacle(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    expires = repository.root.expires
    repository.root.expires = START - timedelta(days=1)
    repository.publish_root()
    repository.root.expires = expires
    repository.publish_root()
    assert device.judge(repository.publish(), "b").approved
    assert device.versions()["root"] == 3


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", MODEL])
def test_new_keys_count_and_old_ones_do_not(tmp_path: Path, role: str) -> None:
    repository, device, _old = experienced(tmp_path)
    thief = repository.fork()
    repository.rotate(role, [f"new-{role}"])
    if role != MODEL:
        repository.publish_root()
    repository.approve("c", 3)
    assert device.judge(repository.publish(), "c").approved
    thief.root, thief.targets = repository.root, repository.targets
    thief.files = dict(repository.files)
    for name in ("snapshot", "timestamp", "model"):
        setattr(thief, name, getattr(repository, name))
    thief.approve("d", 9)
    device.lose_cache()
    answer = device.judge(thief.publish(), "d")
    assert not answer.approved
    assert "was signed by 0/1 keys" in answer.detail


def drive_up(repository: Repository, role: str) -> None:
    repository.object_of(role).version = 99_998


#: What was driven up, and the keys that must change for the honest versions to count again.
RECOVERIES: list[tuple[str, list[str]]] = [
    ("timestamp", ["timestamp"]),
    ("snapshot", ["timestamp", "snapshot"]),
    ("targets", ["snapshot"]),
    (MODEL, ["snapshot"]),
]


@pytest.mark.parametrize("lost", [False, True], ids=["warm", "cache lost"])
@pytest.mark.parametrize(("role", "keys"), RECOVERIES)
def test_recovery_from_a_fast_forward_attack(tmp_path: Path, role: str, keys: list[str], lost: bool) -> None:
    repository, device, _old = experienced(tmp_path)
    thief = repository.fork()
    drive_up(thief, role)
    assert device.judge(thief.publish(), "b").approved
    assert device.versions()[role] == 99_999
    if lost:
        device.lose_cache()

    # Without a rotation the honest versions are a rollback.
    for signed in (repository.timestamp, repository.snapshot, repository.targets, repository.model):
        signed.version += 5
    before = device.kept()
    repository.approve("c", 3)
    assert not device.judge(repository.publish(), "c").approved
    assert device.kept() == before

    for key in keys:
        repository.rotate(key, [f"after-{key}"])
    repository.publish_root()
    assert device.judge(repository.publish(), "c").approved
    assert device.versions()[role] < 100


def test_a_stolen_key_of_a_task_does_not_lock_it_out(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    thief = repository.fork()
    thief.approve("evil", 1 << 50)
    assert device.judge(thief.publish(), "evil").approved
    device.asked.floors.commit(TASK, 1 << 50)

    for signed in (repository.timestamp, repository.snapshot, repository.targets, repository.model):
        signed.version += 5
    repository.approve("c", 3)
    assert device.judge(repository.publish(), "c").final
    repository.rotate(MODEL, ["new-model"])
    assert device.judge(repository.publish(), "c").approved


def test_new_keys_alone_do_not_lower_the_floor_of_a_task(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    repository.rotate(MODEL, ["new-model"])
    answer = device.judge(repository.publish(), "a")
    assert answer.final
    assert "going back needs a new signed version" in answer.detail
    repository.approve("a", 3)
    assert device.judge(repository.publish(), "a").version == 3


def test_the_committed_release_may_be_installed_again(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    assert device.judge(repository.publish(), "b").version == 2


CLOCKS: list[tuple[str, datetime, bool, str]] = [
    ("right", START + timedelta(days=25), True, ""),
    ("1970", datetime(1970, 1, 1, 0, 2, tzinfo=UTC), True, ""),
    ("a year behind what was signed", START - timedelta(days=365), True, ""),
    ("an hour behind", START - timedelta(hours=1), True, ""),
    ("2040", datetime(2040, 1, 1, tzinfo=UTC), False, "expired"),
]


@pytest.mark.parametrize(("moment", "approved", "says"), [clock[1:] for clock in CLOCKS], ids=[c[0] for c in CLOCKS])
def test_a_wrong_clock(tmp_path: Path, moment: datetime, approved: bool, says: str) -> None:
    """25 days away, then the newest metadata: only a clock that is ahead must be set first."""
    repository, device, _old = experienced(tmp_path)
    repository.now = START + timedelta(days=25)
    repository.timestamp.expires = repository.now + timedelta(days=1)
    repository.approve("c", 3)
    files = repository.publish()
    before = device.kept()
    device.wall = moment

    answer = device.judge(files, "c")

    assert answer.approved is approved
    assert says in answer.detail
    if not approved:
        assert not answer.final
        assert device.kept() == before
        device.wall = repository.now
        assert device.judge(files, "c").approved
    assert device.clock.floor_ms == repository.now.timestamp() * 1000


@pytest.mark.parametrize("restarted", [False, True])
def test_what_expired_before_the_newest_signed_moment_has_expired_in_1970_too(tmp_path: Path, restarted: bool) -> None:
    repository, device, _old = experienced(tmp_path)
    repository.timestamp.expires = START + timedelta(days=1)
    frozen = repository.publish()
    repository.now = START + timedelta(days=25)
    repository.timestamp.expires = START + timedelta(days=26)
    assert device.judge(repository.publish(), "b").approved
    device.wall = datetime(1970, 1, 1, tzinfo=UTC)
    if restarted:
        device = TrustDevice(tmp_path, frozen["1.root.json"], now=device.wall)
    device.lose_cache()
    before = device.kept()
    answer = device.judge(frozen, "b")
    assert (answer.approved, answer.final) == (False, False)
    assert "expired" in answer.detail
    assert "own clock is behind" in answer.detail
    assert device.kept() == before


def test_a_clock_learns_nothing_beyond_the_end_of_what_it_verified(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    floor = device.clock.floor_ms
    repository.now = START + timedelta(days=3650)
    assert device.judge(repository.publish(), "b").approved
    assert device.clock.floor_ms == floor


@pytest.mark.parametrize("issued", [-1, "soon", True, 1 << 60])
def test_a_malformed_moment_is_refused(tmp_path: Path, issued: object) -> None:
    repository, device, _old = experienced(tmp_path)
    repository.publish()
    before = device.kept()

    def change(signed: Signed) -> None:
        signed.unrecognized_fields["x-skerry-issued"] = issued

    repository.issue("timestamp", change)
    answer = device.judge(repository.files, "b")
    assert not answer.approved
    assert "x-skerry-issued" in answer.detail
    assert device.kept() == before
