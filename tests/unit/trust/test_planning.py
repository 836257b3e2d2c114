"""Metadata from what shall be true: golden cases by hand, and what python-tuf's own client makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import ExpiredMetadataError

from skerry_contract.limits import TRUST_FILE_BYTES
from skerry_server.trust import planning
from skerry_server.trust.keys import KeyFolder, KeyRing, MissingKeysError
from skerry_server.trust.repository import (
    Approved,
    DamagedRepositoryError,
    Lifetimes,
    Repository,
    TrustFile,
    Wanted,
    parse,
)
from unit.trust.tuf_device import TufDevice

START = datetime(2030, 1, 1, tzinfo=UTC)
LIVES = Lifetimes()
KEY = "ab" * 32


def release(task: str, number: int, version: int = 0) -> Approved:
    data = f"envelope {task} {number}".encode()
    return Approved(task, f"{task}-r{number}", version or number, len(data), hashlib.sha256(data).hexdigest())


def wanted(*releases: Approved, keys: Sequence[str] = (KEY,)) -> Wanted:
    return Wanted(tuple(sorted(releases, key=lambda one: (one.task, one.release_id))), tuple(keys))


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(KeyFolder(tmp_path / "keys"))


@pytest.fixture
def first(ring: KeyRing) -> Repository:
    """Roots and empty lists, made at :data:`START`."""
    root = planning.first_root(ring, threshold=2, of=3, now=START, lifetimes=LIVES)
    repository = parse({root.name: root.data})
    return after(repository, planned(repository, wanted(), ring))


def planned(
    repository: Repository, what: Wanted, ring: KeyRing, *, at: timedelta = timedelta(0), lives: Lifetimes = LIVES
) -> list[TrustFile]:
    return planning.plan(repository, what, ring, now=START + at, lifetimes=lives)


def after(repository: Repository, files: Sequence[TrustFile]) -> Repository:
    return repository.with_files(files)


def names(files: Sequence[TrustFile]) -> list[str]:
    return [file.name for file in files]


def as_files(repository: Repository) -> dict[str, bytes]:
    return {file.name: file.data for file in repository.files}


def test_first_metadata_are_two_of_three_root_keys_and_one_for_each_other_role(first: Repository) -> None:
    root = first.root
    assert (len(root.roles["root"].keyids), root.roles["root"].threshold) == (3, 2)
    assert [len(root.roles[role].keyids) for role in ("targets", "snapshot", "timestamp")] == [1, 1, 1]
    assert len(root.keys) == 6
    assert root.consistent_snapshot
    assert root.expires == START + timedelta(days=365)
    assert names(first.files) == ["1.targets.json", "1.snapshot.json", "timestamp.json", "1.root.json"]
    lives = {role: metadata.signed.expires - START for role, metadata in first.online.items()}
    assert lives == {"targets": timedelta(days=90), "snapshot": timedelta(days=7), "timestamp": timedelta(days=1)}
    assert first.issued_ms == round(START.timestamp() * 1000)
    assert first.online["snapshot"].signed.unrecognized_fields["x-skerry-issued"] == first.issued_ms


def test_only_what_changes_gets_a_new_version_in_the_order_of_writing(first: Repository, ring: KeyRing) -> None:
    one = after(first, planned(first, wanted(release("digits", 1), release("har", 1)), ring))
    assert planned(one, one.wanted(), ring) == []
    files = planned(one, wanted(release("digits", 1), release("digits", 2), release("har", 1)), ring)
    assert names(files) == ["2.model-digits.json", "3.snapshot.json", "timestamp.json"]
    two = after(one, files)
    files = planned(two, replace(two.wanted(), instruction_keys=("cd" * 32,)), ring)
    assert names(files) == ["3.targets.json", "4.snapshot.json", "timestamp.json"]
    three = after(two, files)
    assert names(planned(three, three.wanted(), ring, at=timedelta(hours=15, minutes=59))) == []
    assert names(planned(three, three.wanted(), ring, at=timedelta(hours=16))) == ["timestamp.json"]
    assert names(planned(three, three.wanted(), ring, at=timedelta(hours=112))) == ["5.snapshot.json", "timestamp.json"]
    assert names(planned(three, three.wanted(), ring, at=timedelta(days=60))) == [
        "3.model-digits.json",
        "2.model-har.json",
        "4.targets.json",
        "5.snapshot.json",
        "timestamp.json",
    ]


def test_a_device_sees_the_approved_releases_with_their_numbers(
    first: Repository, ring: KeyRing, tmp_path: Path
) -> None:
    device = TufDevice(tmp_path / "device", first.files[-1].data)
    paths = ["digits/digits-r1", "digits/digits-r2", "har/har-r1", "keys"]
    one = after(first, planned(first, wanted(release("digits", 1), release("har", 1)), ring))
    targets = device.targets(as_files(one), paths, now=START)
    assert {path: target.custom for path, target in targets.items()} == {
        "digits/digits-r1": {"version": 1},
        "har/har-r1": {"version": 1},
        "keys": {"instruction_keys": [KEY]},
    }
    targets["digits/digits-r1"].verify_length_and_hashes(b"envelope digits 1")
    # Release 2 is withdrawn and release 1 approved anew: a new number for the same bytes.
    two = after(one, planned(one, wanted(release("digits", 2), release("digits", 1, 3)), ring))
    three = after(two, planned(two, wanted(release("digits", 1, 3)), ring))
    targets = device.targets(as_files(three), paths, now=START)
    assert sorted(targets) == ["digits/digits-r1", "keys"]
    assert targets["digits/digits-r1"].custom == {"version": 3}


def test_a_task_without_releases_keeps_its_role(first: Repository, ring: KeyRing) -> None:
    one = after(first, planned(first, wanted(release("digits", 1)), ring))
    files = planned(one, wanted(), ring)
    assert names(files) == ["2.model-digits.json", "3.snapshot.json", "timestamp.json"]
    assert after(one, files).wanted().releases == ()


def test_metadata_in_time_are_good_and_later_they_are_not(first: Repository, ring: KeyRing, tmp_path: Path) -> None:
    device = TufDevice(tmp_path / "device", first.files[-1].data)
    device.refresh(as_files(first), now=START + timedelta(hours=23))
    with pytest.raises(ExpiredMetadataError, match="timestamp"):
        device.refresh(as_files(first), now=START + timedelta(hours=25))


def test_a_clock_that_went_back_does_not_issue_the_past(first: Repository, ring: KeyRing) -> None:
    one = after(first, planned(first, wanted(release("digits", 1)), ring, at=timedelta(days=-9_000)))
    assert one.issued_ms == first.issued_ms
    assert one.online["timestamp"].signed.expires == START + timedelta(days=1)


def test_too_much_for_one_message_is_refused_whole(first: Repository, ring: KeyRing) -> None:
    many = wanted(*(release("digits", number) for number in range(1, 1_001)))
    with pytest.raises(planning.TrustFileTooLargeError, match=f"more than {TRUST_FILE_BYTES}") as refusal:
        planned(first, many, ring)
    assert refusal.value.file == "1.model-digits.json"
    largest = after(first, planned(first, wanted(*(release("digits", number) for number in range(1, 513))), ring))
    assert len(largest.wanted().releases) == 512


def test_too_many_files_are_refused(first: Repository, ring: KeyRing) -> None:
    tasks = wanted(*(release(f"task-{number:03d}", 1) for number in range(253)))
    with pytest.raises(planning.TrustFileTooLargeError, match="257 files"):
        planned(first, tasks, ring)


def test_the_next_root_needs_a_threshold_of_the_old_keys(first: Repository, ring: KeyRing, tmp_path: Path) -> None:
    held = sorted((tmp_path / "keys").glob("root.*.pem"))
    held[0].unlink()
    file = planning.next_root(first, ring, now=START, lifetimes=LIVES)
    assert file.name == "2.root.json"
    held[1].unlink()
    with pytest.raises(MissingKeysError) as refusal:
        planning.next_root(first, ring, now=START, lifetimes=LIVES)
    assert (refusal.value.role, refusal.value.needed, refusal.value.found) == ("root", 2, 1)


def test_a_new_root_with_new_keys_leads_old_devices_on(first: Repository, ring: KeyRing, tmp_path: Path) -> None:
    device = TufDevice(tmp_path / "device", first.files[-1].data)
    device.refresh(as_files(first), now=START)
    repository = first
    for number in range(2, 5):
        fresh = {"root": ring.create_root(number)}
        file = planning.next_root(repository, ring, now=START, lifetimes=LIVES, keys=fresh, threshold=number)
        repository = after(repository, [file])
    assert names(repository.files)[-4:] == ["1.root.json", "2.root.json", "3.root.json", "4.root.json"]
    device.refresh(as_files(repository), now=START)
    assert device.targets(as_files(repository), ["keys"], now=START)
    assert repository.root.roles["root"].threshold == 4


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_role_signed_by_both_keys_holds_under_both_roots(
    first: Repository, ring: KeyRing, tmp_path: Path, role: str
) -> None:
    fresh = ring.create(role)
    files = planning.plan(first, first.wanted(), ring, now=START, lifetimes=LIVES, also={role: fresh})
    between = after(first, files)
    TufDevice(tmp_path / "old", first.files[-1].data).refresh(as_files(between), now=START)
    root = planning.next_root(between, ring, now=START, lifetimes=LIVES, keys={role: [fresh]})
    rotated = after(between, [root])
    device = TufDevice(tmp_path / "new", first.files[-1].data)
    device.refresh(as_files(rotated), now=START)
    assert planned(rotated, rotated.wanted(), ring) == []
    (tmp_path / "keys" / f"{role}.{first.root.roles[role].keyids[0][:16]}.pem").unlink()
    device.refresh(as_files(after(rotated, planned(rotated, rotated.wanted(), ring, at=timedelta(days=60)))), now=START)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("1.root.json", "1.root.json is missing"),
        ("1.targets.json", "1.targets.json is missing"),
        ("2.snapshot.json", "2.snapshot.json is missing"),
        ("timestamp.json", "timestamp.json is missing"),
    ],
)
def test_a_file_that_is_gone_is_named(first: Repository, ring: KeyRing, gone: str, said: str) -> None:
    files = as_files(after(first, planned(first, wanted(release("digits", 1)), ring)))
    files |= {"1.targets.json": b"{}"} if gone != "1.targets.json" else {}
    files.pop({"1.targets.json": "2.targets.json"}.get(gone, gone))
    with pytest.raises(DamagedRepositoryError, match=said.replace("1.targets", "2.targets")):
        parse(files)


def test_a_file_that_was_changed_is_named(first: Repository) -> None:
    files = as_files(first)
    files["1.targets.json"] = files["1.targets.json"].replace(b"targets", b"targetz", 1)
    with pytest.raises(DamagedRepositoryError, match=r"1\.targets\.json has another digest"):
        parse(files)
    with pytest.raises(DamagedRepositoryError, match=r"timestamp\.json cannot be read"):
        parse(as_files(first) | {"timestamp.json": b"{"})
