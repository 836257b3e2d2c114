"""Makes signed metadata from a description of what shall be true. Values in, files out: no disk but the keys, no clock.

Invariants of :func:`plan`:

* A version goes up exactly where content, keys or expiry change, and never down.
* The files come in the order in which they must be written: nothing refers to what does not exist yet, and only
  ``timestamp.json`` replaces a file. Stopping after any of them leaves a repository that verifies.
* Time does not run backwards: a clock that is behind what was issued before counts as standing still.
* Every file is verified against its delegator before it is returned, and fits into one message.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from skerry_contract.limits import TRUST_FILE_BYTES, TRUST_FILES
from skerry_server.errors import PlatformError
from skerry_server.trust.keys import KeyRing
from skerry_server.trust.repository import (
    ISSUED,
    KEYS_TARGET,
    MODEL,
    ONLINE,
    Lifetimes,
    Repository,
    TrustFile,
    Wanted,
    file_name,
)

_Signed = Root | Targets | Snapshot | Timestamp


class TrustFileTooLargeError(PlatformError):
    """Metadata do not fit into what devices accept.

    Attributes:
        file: Which one.
    """

    def __init__(self, file: str, why: str) -> None:
        self.file = file
        super().__init__(f"{file} {why}", remedy="lower trust.releases in server.json, or withdraw releases")


def first_root(ring: KeyRing, *, threshold: int, of: int, now: datetime, lifetimes: Lifetimes) -> TrustFile:
    """Make keys for every top-level role and the first root.

    Raises:
        PlatformError: A key cannot be written.
    """
    root = Root(version=1, expires=now + lifetimes.root, consistent_snapshot=True)
    signers = ring.create_root(of)
    for signer in signers:
        root.add_key(signer.public_key, Root.type)
    root.roles[Root.type].threshold = threshold
    for role in ONLINE:
        root.add_key(ring.create(role).public_key, role)
    return _signed_root(root, signers, previous=None)


def next_root(
    repository: Repository,
    ring: KeyRing,
    *,
    now: datetime,
    lifetimes: Lifetimes,
    keys: Mapping[str, Sequence[CryptoSigner]] | None = None,
    threshold: int = 0,
) -> TrustFile:
    """The next version of the root, signed by a threshold of the old root keys and, if they change, of the new ones.

    Args:
        repository: What there is.
        ring: Where the old root keys are looked for.
        now: The time.
        lifetimes: How long the new version holds.
        keys: New keys by top-level role; the other roles keep theirs.
        threshold: Of the root role; 0 keeps it.

    Raises:
        MissingKeysError: Too few of the old root keys are there.
    """
    now = _not_before(now, repository)
    previous = repository.root
    old_keys, old_threshold = repository.keys_of(Root.type)
    signers = ring.signers(Root.type, old_keys, old_threshold)
    root = copy.deepcopy(previous)  # from_dict(to_dict()) would share its lists
    root.version = previous.version + 1
    root.expires = now + lifetimes.root
    root.roles[Root.type].threshold = threshold or old_threshold
    for role, fresh in (keys or {}).items():
        for key_id in list(root.roles[role].keyids):
            root.revoke_key(key_id, role)
        for signer in fresh:
            root.add_key(signer.public_key, role)
        if role == Root.type:
            signers = [*signers, *fresh]
    return _signed_root(root, signers, previous=previous)


def plan(
    repository: Repository,
    wanted: Wanted,
    ring: KeyRing,
    *,
    now: datetime,
    lifetimes: Lifetimes,
    also: Mapping[str, CryptoSigner] | None = None,
    delegates: Mapping[str, Key] | None = None,
) -> list[TrustFile]:
    """Files that make ``repository`` say what is wanted, in the order in which they must be written; empty if it does.

    Args:
        repository: What there is.
        wanted: What shall be true.
        ring: Where private keys are looked for; keys of new delegated roles are made there.
        now: The time.
        lifetimes: How long new metadata hold.
        also: By top-level role, a key that signs beside today's: with it the role holds under a root that does not
            name it yet and under the next one that does.
        delegates: By delegated role, a public key that replaces today's.

    Raises:
        MissingKeysError: A private key that is needed is not there.
        TrustFileTooLargeError: A file would not fit into a message, or there would be too many.
    """
    work = _Plan(repository, ring, now=_not_before(now, repository), lifetimes=lifetimes, also=also or {})
    models: dict[str, dict[str, TargetFile]] = {role: {} for role in repository.delegations}
    for release in wanted.releases:
        path = f"{release.task}/{release.release_id}"
        custom = {"custom": {"version": release.version}}
        target = TargetFile(release.length, {"sha256": release.sha256}, path, custom)
        models.setdefault(MODEL + release.task, {})[path] = target
    if (count := len(models) + 3 + len(repository.roots)) > TRUST_FILES:
        raise TrustFileTooLargeError("the signed metadata", f"have {count} files, more than {TRUST_FILES}")
    keys: dict[str, Key] = {}
    roles: dict[str, DelegatedRole] = {}
    for role in sorted(models):
        key = (delegates or {}).get(role) or work.model_key(role)
        keys[key.keyid] = key
        paths = [f"{role.removeprefix(MODEL)}/*"]
        roles[role] = DelegatedRole(role, [key.keyid], 1, terminating=True, paths=paths)
    listed = {KEYS_TARGET: _keys_target(wanted.instruction_keys)}
    top = Targets(targets=listed, delegations=Delegations(keys, roles))
    meta: dict[str, MetaFile] = {}
    for role, targets in sorted(models.items()):
        meta[f"{role}.json"] = work.renew(role, Targets(targets=targets), delegator=top)
    meta["targets.json"] = work.renew(Targets.type, top, delegator=repository.root)
    snapshot_meta = work.renew(Snapshot.type, Snapshot(meta=meta), delegator=repository.root)
    work.renew(Timestamp.type, Timestamp(snapshot_meta=snapshot_meta), delegator=repository.root)
    return work.files


class _Plan:
    """Collects new files; one use."""

    def __init__(
        self,
        repository: Repository,
        ring: KeyRing,
        *,
        now: datetime,
        lifetimes: Lifetimes,
        also: Mapping[str, CryptoSigner],
    ) -> None:
        self.files: list[TrustFile] = []
        self._repository = repository
        self._data = {file.name: file.data for file in repository.files}
        self._ring = ring
        self._now = now
        self._lifetimes = lifetimes
        self._also = also

    def model_key(self, role: str) -> Key:
        """Today's key of a delegated role, or a new one for a new role."""
        if role in self._repository.delegations:
            return self._repository.keys_of(role)[0][0]
        return self._ring.spare(role).public_key

    def renew(self, role: str, signed: _Signed, *, delegator: Root | Targets) -> MetaFile:
        """Sign ``signed`` if the role does not say so already; returns what refers to the role's newest file."""
        old = self._repository.online.get(role)
        if old is not None and self._holds(role, old, signed, delegator):
            return _reference(self._data[file_name(role, old.signed.version)], old.signed.version)
        signed.version = 1 if old is None else old.signed.version + 1
        signed.expires = self._now + self._lifetimes.of(role)
        if role in (Snapshot.type, Timestamp.type):
            signed.unrecognized_fields[ISSUED] = _milliseconds(self._now)
        delegated = delegator.get_delegated_role(role)
        keys = [delegator.get_key(key_id) for key_id in delegated.keyids]
        signers = self._ring.signers(role, keys, delegated.threshold)
        if role in self._also:
            signers.append(self._also[role])
        data = _sign(signed, signers)
        delegator.verify_delegate(role, *_verifiable(data))
        name = file_name(role, signed.version)
        if len(data) > TRUST_FILE_BYTES:
            raise TrustFileTooLargeError(name, f"would have {len(data)} bytes, more than {TRUST_FILE_BYTES}")
        self.files.append(TrustFile(name, data))
        return _reference(data, signed.version)

    def _holds(self, role: str, old: Metadata[Any], new: _Signed, delegator: Root | Targets) -> bool:
        if role in self._also or self._lifetimes.due(role, old.signed.expires, self._now):
            return False
        if _content(old.signed) != _content(new):
            return False
        return delegator.get_verification_result(role, old.signed_bytes, old.signatures).verified


def _signed_root(root: Root, signers: Sequence[CryptoSigner], *, previous: Root | None) -> TrustFile:
    data = _sign(root, signers)
    if not root.get_root_verification_result(previous, *_verifiable(data)).verified:
        raise RuntimeError(f"root version {root.version} does not hold")
    name = f"{root.version}.root.json"
    if len(data) > TRUST_FILE_BYTES:
        raise TrustFileTooLargeError(name, f"would have {len(data)} bytes, more than {TRUST_FILE_BYTES}")
    return TrustFile(name, data)


def _sign(signed: _Signed, signers: Sequence[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _verifiable(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """What a device verifies: read back from the bytes that it gets."""
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    return metadata.signed_bytes, metadata.signatures


def _content(signed: _Signed) -> dict[str, Any]:
    """What a role says, without when it said so."""
    document = signed.to_dict()
    return {name: value for name, value in document.items() if name not in ("version", "expires", ISSUED)}


def _keys_target(instruction_keys: Sequence[str]) -> TargetFile:
    """The list of keys lies in the custom data; the target itself is the same list, for whoever downloads it."""
    custom = {"instruction_keys": list(instruction_keys)}
    data = json.dumps(custom, sort_keys=True, separators=(",", ":")).encode()
    return TargetFile(len(data), {"sha256": hashlib.sha256(data).hexdigest()}, KEYS_TARGET, {"custom": custom})


def _reference(data: bytes, version: int) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _not_before(now: datetime, repository: Repository) -> datetime:
    return max(now, datetime.fromtimestamp(repository.issued_ms / 1000, UTC))


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
