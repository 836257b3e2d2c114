"""A small control plane that signs metadata and can be made to sign, or to serve, anything."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, cast

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.update.ports import ApprovalRequest
from skerry_contract.topics import TRUST_INDEX
from skerry_contract.v1.release_pb2 import TrustFile, TrustIndex

START = datetime(2030, 1, 1, tzinfo=UTC)
TASK = "digits"
MODEL = f"model-{TASK}"
ONLINE = ("timestamp", "snapshot", "targets", MODEL)
Files = dict[str, bytes]


@cache
def signer(name: str) -> CryptoSigner:
    """The same key for the same name, all through a test run."""
    return CryptoSigner.generate_ed25519()


def envelope(release_id: str) -> bytes:
    """What stands for the signed manifest of a release."""
    return f"envelope of {release_id}".encode() * 5


def asks(release_id: str, *, task: str = TASK, content: bytes | None = None) -> ApprovalRequest:
    return ApprovalRequest(task, release_id, envelope(release_id) if content is None else content)


def index_of(names: dict[str, int]) -> bytes:
    return TrustIndex(files=[TrustFile(name=name, size=size) for name, size in names.items()]).SerializeToString()


def deliver(mailbox: TrustMailbox, files: Files, *, withheld: tuple[str, ...] = ()) -> None:
    """Put files as the broker would: gone ones first, the index last; ``withheld`` are named and never come."""
    for name in mailbox.names():
        if name not in files or name in withheld:
            mailbox.put(name, b"")
    for name, data in files.items():
        if name not in withheld:
            mailbox.put(name, data)
    mailbox.put(TRUST_INDEX, index_of({name: max(1, len(data)) for name, data in files.items()}))


def key_of(holder: Signer) -> Key:
    assert isinstance(holder, CryptoSigner)
    return holder.public_key


@dataclass
class Repository:
    """Signed objects, and the files that were made of them.

    Root is 2-of-3. Change ``now``, the objects and the signers at will; :meth:`publish` makes the next honest state.
    """

    now: datetime = START
    signers: dict[str, list[Signer]] = field(default_factory=dict)
    files: Files = field(default_factory=dict)

    def __post_init__(self) -> None:
        expires = self.now + timedelta(days=365)
        self.root = Root(expires=expires, consistent_snapshot=True)
        self.signers["root"] = [signer(f"root-{number}") for number in range(3)]
        for role in ("timestamp", "snapshot", "targets"):
            self.signers[role] = [signer(role)]
        self.signers[MODEL] = [signer(MODEL)]
        self.root.roles["root"].threshold = 2
        for role, holders in self.signers.items():
            if role != MODEL:
                for holder in holders:
                    self.root.add_key(key_of(holder), role)
        self.targets = Targets(expires=expires, delegations=Delegations({}, {}))
        self.model = Targets(expires=expires)
        self.delegate(MODEL, f"{TASK}/*", self.signers[MODEL])
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        for signed in (self.root, self.targets, self.model, self.snapshot, self.timestamp):
            signed.version = 0
        self.list_keys(["aa" * 32])
        self.publish_root()

    def fork(self) -> Repository:
        """Another one with the same keys: what an attacker who has them could make of it."""
        other = copy.copy(self)
        other.files = dict(self.files)
        other.signers = {role: list(holders) for role, holders in self.signers.items()}
        for name in ("root", "targets", "model", "snapshot", "timestamp"):
            setattr(other, name, copy.deepcopy(getattr(self, name)))
        return other

    def delegate(self, role: str, pattern: str, holders: list[Signer]) -> None:
        delegations = self.targets.delegations
        assert delegations is not None
        assert delegations.roles is not None
        delegations.roles[role] = DelegatedRole(role, [], 1, True, paths=[pattern])
        for holder in holders:
            self.targets.add_key(key_of(holder), role)

    def list_keys(self, keys: list[object]) -> None:
        self.targets.targets["keys"] = TargetFile(
            1, {"sha256": "0" * 64}, "keys", {"custom": {"instruction_keys": keys}}
        )

    def approve(self, release_id: str, version: object, *, content: bytes | None = None, task: str = TASK) -> None:
        data = envelope(release_id) if content is None else content
        path = f"{task}/{release_id}"
        self.model.targets[path] = TargetFile(
            len(data), {"sha256": hashlib.sha256(data).hexdigest()}, path, {"custom": {"version": version}}
        )

    def rotate(self, role: str, names: list[str], *, threshold: int = 1) -> None:
        """Other keys for a role; publish a root, or the targets, to make them count."""
        holders: list[Signer] = [signer(name) for name in names]
        if role == MODEL:
            assert self.targets.delegations is not None
            self.delegate(MODEL, f"{TASK}/*", holders)
        else:
            self.root.roles[role].keyids = []
            self.root.roles[role].threshold = threshold
            for holder in holders:
                self.root.add_key(key_of(holder), role)
        if role != "root":
            self.signers[role] = holders
        else:
            self.signers["root"] = holders

    def publish_root(self, *also: Signer) -> None:
        """The next root, signed by the keys of the role and by ``also``: those of the root before."""
        self.root.version += 1
        self.files[f"{self.root.version}.root.json"] = self.sign(self.root, [*self.signers["root"], *also])

    def publish(self) -> Files:
        """Everything below the root in its next version; returns all files."""
        for role in (MODEL, "targets", "snapshot", "timestamp"):
            self.issue(role)
        return dict(self.files)

    def issue(self, role: str, change: Callable[[Signed], None] = lambda signed: None, *, bump: bool = True) -> None:
        """Sign a role again and put its file in the place of the one before.

        Args:
            role: Which.
            change: Made to the object after it refers to the present files and before it is signed.
            bump: Whether it gets the next version.
        """
        signed = self.object_of(role)
        old = self.name_of(role)
        signed.version += bump
        if role == "snapshot":
            self.snapshot.meta = {f"{name}.json": self.reference(name) for name in ("targets", MODEL)}
        if role == "timestamp":
            self.timestamp.snapshot_meta = self.reference("snapshot")
        if role in ("snapshot", "timestamp"):
            signed.unrecognized_fields["x-skerry-issued"] = round(self.now.timestamp() * 1000)
        change(signed)
        self.files.pop(old, None)
        self.files[self.name_of(role)] = self.sign(signed, self.signers[role])

    def object_of(self, role: str) -> Signed:
        return {
            "targets": self.targets,
            "snapshot": self.snapshot,
            "timestamp": self.timestamp,
            MODEL: self.model,
            "root": self.root,
        }[role]

    def name_of(self, role: str) -> str:
        return "timestamp.json" if role == "timestamp" else f"{self.object_of(role).version}.{role}.json"

    def reference(self, role: str) -> MetaFile:
        data = self.files[self.name_of(role)]
        return MetaFile(self.object_of(role).version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    @staticmethod
    def sign(signed: Signed, holders: list[Signer]) -> bytes:
        metadata: Metadata[Any] = Metadata(cast("Any", signed))
        for holder in holders:
            metadata.sign(holder, append=True)
        return metadata.to_bytes()
