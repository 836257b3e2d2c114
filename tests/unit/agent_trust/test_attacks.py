"""The attack matrix of TUF clients, over MQTT: what is served, and what the device must say.

In every case: nothing is approved, floors, keys and anchor are as they were, and the next honest state is approved. A
device whose cache was lost must hold out too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Signed, Snapshot, Timestamp

from unit.agent_trust.repository import MODEL, ONLINE, Files, Repository, asks, envelope, signer
from unit.agent_trust.trust_device import experienced


@dataclass(frozen=True)
class Attack:
    name: str
    serve: Callable[[Repository, Files], Files]
    says: str
    request: str = "c"
    final: bool = False
    #: Whether the top-level metadata verify, and only the release, or its role, does not.
    top_holds: bool = False
    #: Whether the root is one that the owners of its keys signed.
    root_holds: bool = False


OLDER = "older than what this device has seen|must be >="


def expire(signed: Signed) -> None:
    signed.expires -= timedelta(days=400)


def reissue(role: str, change: Callable[[Signed], None], *, bump: bool = True) -> Callable[[Repository, Files], Files]:
    """One role is signed wrongly; those above it honestly refer to that."""

    def serve(repository: Repository, _old: Files) -> Files:
        above = {MODEL: ("targets", "snapshot", "timestamp"), "targets": ("snapshot", "timestamp")}
        repository.publish()
        repository.issue(role, change, bump=bump)
        for other in above.get(role, ("timestamp",) if role == "snapshot" else ()):
            repository.issue(other)
        return repository.files

    return serve


def signed_by(role: str, *names: str) -> Callable[[Repository, Files], Files]:
    def serve(repository: Repository, _old: Files) -> Files:
        repository.signers[role] = [signer(name) for name in names]
        return repository.publish()

    return serve


def replay(_repository: Repository, old: Files) -> Files:
    return old


def timestamp_back(signed: Signed) -> None:
    signed.version = 1


def snapshot_version_back(signed: Signed) -> None:
    assert isinstance(signed, Timestamp)
    signed.snapshot_meta.version = 1


def snapshot_back(repository: Repository, old: Files) -> Files:
    repository.publish()
    repository.snapshot.version = 0
    repository.issue("snapshot")
    repository.issue("timestamp")
    return repository.files | {"1.snapshot.json": repository.files["1.snapshot.json"]}


def role_back(role: str) -> Callable[[Repository, Files], Files]:
    """The snapshot is made to name the first version of a role, which verifies."""

    def serve(repository: Repository, old: Files) -> Files:
        name = f"1.{role}.json"

        def change(signed: Signed) -> None:
            assert isinstance(signed, Snapshot)
            signed.meta[f"{role}.json"].version = 1
            signed.meta[f"{role}.json"].length = None
            signed.meta[f"{role}.json"].hashes = None

        return reissue("snapshot", change)(repository, old) | {name: old[name]}

    return serve


def role_gone(signed: Signed) -> None:
    assert isinstance(signed, Snapshot)
    del signed.meta[f"{MODEL}.json"]


def served_as(role: str, other: Callable[[Repository, Files], bytes]) -> Callable[[Repository, Files], Files]:
    """The file of a role has other bytes."""

    def serve(repository: Repository, old: Files) -> Files:
        repository.publish()
        return repository.files | {repository.name_of(role): other(repository, old)}

    return serve


def twin(role: str) -> Callable[[Repository, Files], bytes]:
    """The same version, validly signed, of another moment: what mix-and-match needs."""

    def make(repository: Repository, _old: Files) -> bytes:
        fork = repository.fork()
        fork.object_of(role).expires += timedelta(days=1)
        return fork.sign(fork.object_of(role), fork.signers[role])

    return make


def flipped(role: str) -> Callable[[Repository, Files], Files]:
    """One signature does not hold; those above refer to it."""

    def serve(repository: Repository, old: Files) -> Files:
        repository.publish()
        name = repository.name_of(role)
        metadata = Metadata.from_bytes(repository.files[name])
        for signature in metadata.signatures.values():
            signature.signature = signature.signature[:-2] + ("00" if signature.signature[-2:] != "00" else "11")
        repository.files[name] = metadata.to_bytes()
        for other in {MODEL: ("snapshot", "timestamp"), "targets": ("snapshot", "timestamp")}.get(
            role, ("timestamp",) if role == "snapshot" else ()
        ):
            repository.issue(other)
        return repository.files

    return serve


def threshold_two(repository: Repository, _old: Files) -> Files:
    repository.root.roles["targets"].threshold = 2
    repository.root.add_key(signer("targets-2").public_key, "targets")
    repository.publish_root()
    return repository.publish()


def new_root(*names: str, skip: int = 0) -> Callable[[Repository, Files], Files]:
    """A root with the keys of an attacker, signed by ``names``; everything below is signed with those keys too."""

    def serve(repository: Repository, _old: Files) -> Files:
        repository.rotate("root", ["evil-0", "evil-1"], threshold=2)
        repository.rotate("timestamp", ["evil-timestamp"])
        repository.signers["root"] = [signer(name) for name in names]
        repository.root.version += skip
        repository.publish_root()
        return repository.publish()

    return serve


def root_without_the_next(repository: Repository, _old: Files) -> Files:
    old = list(repository.signers["root"])
    repository.rotate("root", ["new-0", "new-1"], threshold=2)
    repository.publish_root(*old)
    repository.rotate("timestamp", ["new-timestamp"])
    repository.publish_root()
    files = repository.publish()
    del files["2.root.json"]
    return files


def same_root_again(repository: Repository, _old: Files) -> Files:
    files = repository.publish()
    return files | {"2.root.json": files["1.root.json"]}


def expired_root(repository: Repository, _old: Files) -> Files:
    repository.root.expires -= timedelta(days=400)
    repository.publish_root()
    return repository.publish()


def listed_by_another_task(repository: Repository, _old: Files) -> Files:
    del repository.model.targets["digits/c"]
    repository.delegate("model-har", "har/*", [signer("model-har")])
    files = repository.publish()
    other = repository.fork()
    other.approve("c", 3)
    files["1.model-har.json"] = other.sign(other.model, [signer("model-har")])
    return files


def withdrawn(repository: Repository, _old: Files) -> Files:
    del repository.model.targets["digits/c"]
    return repository.publish()


def other_content(content: bytes) -> Callable[[Repository, Files], Files]:
    def serve(repository: Repository, _old: Files) -> Files:
        repository.approve("c", 3, content=content)
        return repository.publish()

    return serve


def version(number: object, release_id: str = "c") -> Callable[[Repository, Files], Files]:
    def serve(repository: Repository, _old: Files) -> Files:
        repository.approve(release_id, number)
        return repository.publish()

    return serve


GOING_BACK = "going back needs a new signed version"
NO_VERSION = "without a version"
ATTACKS = [
    Attack("replay of a whole old state", replay, OLDER),
    Attack("timestamp rolled back", reissue("timestamp", timestamp_back), OLDER),
    Attack("timestamp names old snapshot", reissue("timestamp", snapshot_version_back), f"{OLDER}|no 1.snapshot.json"),
    Attack("snapshot rolled back", snapshot_back, OLDER),
    Attack("snapshot names older targets", role_back("targets"), f"{OLDER}|Expected targets.json version 1, got 2"),
    Attack("snapshot names an older delegation", role_back(MODEL), f"{OLDER}|Expected {MODEL}.json version 1, got 2"),
    Attack("snapshot drops a delegation", reissue("snapshot", role_gone), MODEL),
    *(
        Attack(f"{role}: {name}", serve(role), says, top_holds=role == MODEL)
        for role in ONLINE
        for name, serve, says in (
            ("expired", lambda role: reissue(role, expire), "expired"),
            ("not signed", signed_by, "was signed by 0/1 keys"),
            ("signed by another key", lambda role: signed_by(role, "evil"), "was signed by 0/1 keys"),
            ("broken signature", flipped, "was signed by 0/1 keys"),
            ("mixed and matched", lambda role: served_as(role, twin(role)), "hash"),
        )
        if (role, name) != ("timestamp", "mixed and matched")
    ),
    Attack("root expired", expired_root, "expired", root_holds=True),
    Attack("threshold of two, one signature", threshold_two, "was signed by 1/2 keys", root_holds=True),
    Attack("root of an attacker", new_root("evil-0", "evil-1"), "was signed by 0/2 keys"),
    Attack("root with one old signature", new_root("evil-0", "evil-1", "root-0"), "was signed by 1/2 keys"),
    Attack("root with old signatures only", new_root("root-0", "root-1"), "was signed by 0/2 keys"),
    Attack("root that skips a version", new_root("root-0", "root-1", "evil-0", "evil-1", skip=1), "0/1 keys"),
    Attack("an intermediate root is missing", root_without_the_next, "was signed by 0/1 keys"),
    Attack("the same root as the next", same_root_again, "Expected root version 2"),
    Attack("wrong type", served_as("timestamp", lambda repository, _old: repository.files["3.snapshot.json"]), "Expec"),
    Attack("no JSON", served_as("timestamp", lambda _repository, _old: b"\xff\xfe"), "deserialize"),
    Attack("deep JSON", served_as("timestamp", lambda _repository, _old: b"[" * 100_000), "deserialize"),
    Attack("endless", served_as(MODEL, lambda _repository, _old: b" " * 100_000), "more than", top_holds=True),
    Attack("listed by the role of another task", listed_by_another_task, "not listed", top_holds=True),
    Attack("withdrawn", withdrawn, "not listed", top_holds=True),
    Attack("another content, same length", other_content(envelope("d")), "not the one", final=True, top_holds=True),
    Attack("another content, longer", other_content(envelope("c") + b"x"), "not the one", final=True, top_holds=True),
    Attack("version below the committed", version(1), GOING_BACK, final=True, top_holds=True),
    Attack("committed version, another release", version(2), GOING_BACK, final=True, top_holds=True),
    Attack("the old release as it was", version(1, "a"), GOING_BACK, request="a", final=True, top_holds=True),
    *(
        Attack(f"version {number}", version(number), NO_VERSION, top_holds=True)
        for number in (None, True, "4", 0, 1 << 60)
    ),
]


@pytest.mark.parametrize("lost", [False, True], ids=["warm", "cache lost"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_and_leaves_no_trace(tmp_path: Path, attack: Attack, lost: bool) -> None:
    repository, device, old = experienced(tmp_path)
    repository.approve("c", 3)
    evil = repository.fork()
    kept, before = device.kept(), device.floors
    if lost:
        device.lose_cache()

    answer = device.judge(attack.serve(evil, old), attack.request)

    assert not answer.approved
    assert answer.final is attack.final
    assert re.search(attack.says, answer.detail), answer.detail
    if attack.top_holds:
        # The top-level metadata verify, only the release or its role do not: what verified is remembered.
        assert device.floors.committed == before.committed
        assert device.floors.roles["root"] == before.roles["root"]
        assert before.roles[MODEL].version <= device.versions()[MODEL] <= evil.model.version
    else:
        assert device.kept() == kept

    if attack.root_holds:
        repository.root.version = evil.root.version
        repository.files |= {name: data for name, data in evil.files.items() if name.endswith("root.json")}
        repository.publish_root()
    for signed in (repository.timestamp, repository.snapshot, repository.targets, repository.model):
        signed.version += 5
    honest = device.judge(repository.publish(), "c")
    assert (honest.approved, honest.version, honest.detail) == (True, 3, "")


@pytest.mark.parametrize("role", [*ONLINE, "root"])
def test_slow_retrieval_ends_at_the_deadline(tmp_path: Path, role: str) -> None:
    repository, device, _old = experienced(tmp_path)
    repository.approve("c", 3)
    repository.publish_root()
    files = repository.publish()
    name = repository.name_of(role)
    kept, before = device.kept(), device.floors

    answer = device.judge(files, "c", withheld=(name,))

    assert (answer.approved, answer.final) == (False, False)
    assert answer.detail == f"{name} has not come from the broker"
    if role == MODEL:
        assert (device.floors.roles[MODEL], device.floors.committed) == (before.roles[MODEL], before.committed)
    else:
        assert device.kept() == kept
    assert device.judge(files, "c").approved


def test_without_an_index_nothing_is_asked_for(tmp_path: Path) -> None:
    _repository, device, _old = experienced(tmp_path)
    device.mailbox.put("index", b"")
    answer = device.asked.judge(asks("c"))
    assert (answer.approved, answer.final) == (False, False)
    assert answer.detail == "signed metadata have not come from the broker"
