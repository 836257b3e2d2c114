"""Signed metadata as they are read: which files belong together, and what they say. Files in, values out.

Specification: https://theupdateframework.github.io/specification/latest/ (1.0). Consistent snapshots, Ed25519,
canonical JSON. Roles and what they sign:

* ``root``: which keys count for the other top-level roles; a threshold of keys that lie offline.
* ``targets``: a delegation per task, and the target ``keys``, whose custom data list the Ed25519 keys of envelopes.
* ``model-<task>``: targets ``<task>/<release>`` (the bytes of the release's signed envelope), with custom data
  ``{"version": n}``; n counts up per task, so that going back is a *new* approval of an old release.
* ``snapshot`` and ``timestamp``: which versions belong together, newest; both carry ``x-skerry-issued`` (milliseconds
  since 1970), from which devices learn the time.

What is read here lies on the control plane's own disk: digests are checked, signatures are the devices' to verify.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from skerry_server.errors import PlatformError

#: Field of timestamp and snapshot: when they were signed, milliseconds since 1970.
ISSUED = "x-skerry-issued"
#: Target whose custom data list the keys of envelopes.
KEYS_TARGET = "keys"
#: Top-level roles that are signed online.
ONLINE = (Targets.type, Snapshot.type, Timestamp.type)
#: Beginning of the names of delegated roles.
MODEL = "model-"

_VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.([a-z0-9-]+)\.json\Z")
_Kind = TypeVar("_Kind", Root, Timestamp, Snapshot, Targets)


class DamagedRepositoryError(PlatformError):
    """Files of the repository are missing or are not what the others say of them.

    Attributes:
        file: Which one.
    """

    def __init__(self, file: str, why: str) -> None:
        self.file = file
        super().__init__(
            f"the signed metadata are damaged: {file} {why}", remedy="restore the folder `trust` from your backup"
        )


@dataclass(frozen=True)
class Lifetimes:
    """How long each role's metadata hold. Signed again when a third is left."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)

    def of(self, role: str) -> timedelta:
        """Life of a role; a delegated role has that of targets."""
        lives = {Root.type: self.root, Snapshot.type: self.snapshot, Timestamp.type: self.timestamp}
        return lives.get(role, self.targets)

    def due(self, role: str, expires: datetime, now: datetime) -> bool:
        """Whether at most a third of the life is left."""
        return expires - now <= self.of(role) / 3


@dataclass(frozen=True)
class Approved:
    """A release that devices may install.

    Attributes:
        task: Its task.
        release_id: Which one.
        version: Number of the approval; counts up per task.
        length: Bytes of its signed envelope.
        sha256: Their digest, hexadecimal.
    """

    task: str
    release_id: str
    version: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Wanted:
    """What the metadata shall say.

    Attributes:
        releases: Every release that may be installed.
        instruction_keys: Raw Ed25519 public keys that sign envelopes, hexadecimal.
    """

    releases: tuple[Approved, ...] = ()
    instruction_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrustFile:
    """One file: its name as TUF has it, and its content."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Repository:
    """Metadata that belong together.

    Attributes:
        roots: Every version of the root, oldest first; at least one.
        online: Newest metadata of the other roles by role; empty before anything was planned.
        files: Every file that belongs to it, in the order in which a reader may learn of them: delegated roles,
            targets, snapshot, timestamp, roots.
    """

    roots: tuple[Metadata[Root], ...]
    online: Mapping[str, Metadata[Any]]
    files: tuple[TrustFile, ...] = field(repr=False)

    @property
    def root(self) -> Root:
        """The newest root."""
        return self.roots[-1].signed

    @property
    def models(self) -> dict[str, Metadata[Targets]]:
        """The delegated roles, by name."""
        return {role: metadata for role, metadata in self.online.items() if role.startswith(MODEL)}

    @property
    def delegations(self) -> Mapping[str, DelegatedRole]:
        """Delegations of the targets role by name of the role."""
        targets = self._targets()
        return {} if targets is None or targets.delegations is None else targets.delegations.roles or {}

    @property
    def issued_ms(self) -> int:
        """When the newest timestamp was signed; 0 before the first."""
        metadata = self.online.get(Timestamp.type)
        return 0 if metadata is None else int(metadata.signed.unrecognized_fields.get(ISSUED, 0))

    def wanted(self) -> Wanted:
        """What these metadata say."""
        releases = [
            Approved(
                task=path.partition("/")[0],
                release_id=path.partition("/")[2],
                version=int(target.custom["version"]),
                length=target.length,
                sha256=target.hashes["sha256"],
            )
            for _, metadata in sorted(self.models.items())
            for path, target in sorted(metadata.signed.targets.items())
        ]
        targets = self._targets()
        keys = () if targets is None else targets.targets[KEYS_TARGET].custom["instruction_keys"]
        return Wanted(tuple(releases), tuple(keys))

    def keys_of(self, role: str) -> tuple[list[Key], int]:
        """Public keys of a role and how many of them must sign; ``KeyError`` for an unknown role."""
        if role in self.root.roles:
            top = self.root.roles[role]
            return [self.root.keys[key_id] for key_id in top.keyids], top.threshold
        delegated, targets = self.delegations[role], self._targets()
        if targets is None or targets.delegations is None:
            raise KeyError(role)
        return [targets.delegations.keys[key_id] for key_id in delegated.keyids], delegated.threshold

    def with_files(self, files: Sequence[TrustFile]) -> Repository:
        """These metadata with newer files."""
        return parse({file.name: file.data for file in (*self.files, *files)})

    def renew_at(self, lifetimes: Lifetimes) -> datetime:
        """When the first of the online roles is to be signed again."""
        ends: list[tuple[str, datetime]] = [(role, metadata.signed.expires) for role, metadata in self.online.items()]
        return min(expires - lifetimes.of(role) / 3 for role, expires in ends)

    def _targets(self) -> Targets | None:
        metadata = self.online.get(Targets.type)
        return None if metadata is None else metadata.signed


def parse(files: Mapping[str, bytes]) -> Repository:
    """Read files; those that the newest timestamp does not lead to are left aside.

    Raises:
        DamagedRepositoryError: No root, a gap, or a file that is not what another one says of it.
    """
    versions = {name: int(match[1]) for name in files if (match := _VERSIONED.match(name))}
    roots: list[Metadata[Root]] = []
    while (name := f"{len(roots) + 1}.root.json") in files:
        roots.append(_read(name, files[name], Root))
    if not roots or max(version for name, version in versions.items() if name.endswith(".root.json")) > len(roots):
        raise DamagedRepositoryError(name, "is missing")
    root_files = [TrustFile(f"{number}.root.json", files[f"{number}.root.json"]) for number in range(1, len(roots) + 1)]
    if "timestamp.json" not in files:
        if any(version > 1 for name, version in versions.items() if name.endswith(".snapshot.json")):
            raise DamagedRepositoryError("timestamp.json", "is missing")
        return Repository(tuple(roots), {}, tuple(root_files))
    timestamp = _read("timestamp.json", files["timestamp.json"], Timestamp)
    snapshot, snapshot_file = _follow(files, Snapshot.type, timestamp.signed.snapshot_meta, Snapshot)
    online: dict[str, Metadata[Any]] = {Timestamp.type: timestamp, Snapshot.type: snapshot}
    target_files = []
    for name, meta in sorted(snapshot.signed.meta.items()):
        role = name.removesuffix(".json")
        online[role], file = _follow(files, role, meta, Targets)
        target_files.append(file)
    chain = [*target_files, snapshot_file, TrustFile("timestamp.json", files["timestamp.json"])]
    return Repository(tuple(roots), online, (*chain, *root_files))


def file_name(role: str, version: int) -> str:
    """Name of a role's file; only the timestamp has no version in it."""
    return "timestamp.json" if role == Timestamp.type else f"{version}.{role}.json"


def _follow(
    files: Mapping[str, bytes], role: str, meta: MetaFile, kind: type[_Kind]
) -> tuple[Metadata[_Kind], TrustFile]:
    name = file_name(role, meta.version)
    if name not in files:
        raise DamagedRepositoryError(name, "is missing")
    try:
        meta.verify_length_and_hashes(files[name])
    except RepositoryError as error:
        raise DamagedRepositoryError(name, "has another digest than the metadata say") from error
    return _read(name, files[name], kind), TrustFile(name, files[name])


def _read(name: str, data: bytes, kind: type[_Kind]) -> Metadata[_Kind]:
    try:
        metadata: Metadata[_Kind] = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise DamagedRepositoryError(name, f"cannot be read ({error})") from error
    if not isinstance(metadata.signed, kind):
        raise DamagedRepositoryError(name, f"is of type {metadata.signed.type}")
    return metadata
