"""What this device has seen and must not go below. Pure, but for :class:`FloorsFile`.

A floor belongs to the keys that stood behind it: ngclient forgets the timestamp and the snapshot when the keys of
their roles are rotated by a new root (TUF specification, 5.3.11: recovery from a fast-forward attack), and so do the
floors. The root itself never goes back. ngclient holds the same rules against its cache; these hold when the cache is
lost.

The version of a task's release never goes below the committed one, and never stays at it with another release. That
floor, too, falls when the task's keys were rotated and nothing that the new keys list reaches it: a stolen key cannot
lock a device out for ever.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk
from skerry_agent.trust.errors import BelowFloorError
from skerry_agent.trust.places import TrustPlaces

FORMAT = 1
#: Largest version that is taken in: what JSON readers agree on.
LARGEST_VERSION = (1 << 53) - 1
#: Largest file of floors (bytes): hundreds of roles and tasks.
FILE_BYTES = 1 << 20
ROOT, TIMESTAMP, SNAPSHOT = "root", "timestamp", "snapshot"


@dataclass(frozen=True)
class RoleFloor:
    """Highest version of a role.

    Attributes:
        version: That.
        keys: Fingerprint of the keys under which it holds; empty: always.
    """

    version: int
    keys: str


@dataclass(frozen=True)
class TaskFloor:
    """Version under which a release was approved.

    Attributes:
        version: That.
        release_id: Of the release.
        keys: Fingerprint of the keys that listed it.
    """

    version: int
    release_id: str
    keys: str


@dataclass(frozen=True)
class Seen:
    """What a refresh found.

    Attributes:
        versions: Of every role, as the verified snapshot names them.
        verified: Roles whose own metadata were verified.
        timestamp_keys: Fingerprint of the keys of the timestamp role.
        snapshot_keys: Fingerprint of the keys of the snapshot role.
    """

    versions: Mapping[str, int]
    verified: frozenset[str]
    timestamp_keys: str
    snapshot_keys: str

    def guard(self, role: str) -> str:
        """Keys whose rotation lets the versions of a role start again."""
        if role == ROOT:
            return ""
        return self.timestamp_keys if role in (TIMESTAMP, SNAPSHOT) else self.snapshot_keys


@dataclass(frozen=True)
class Listing:
    """A release in verified metadata.

    Attributes:
        task: Its task.
        release_id: Which.
        version: Under which it is approved now.
        keys: Fingerprint of the keys of the role that lists it.
        highest: Highest version that the role lists for the task.
    """

    task: str
    release_id: str
    version: int
    keys: str
    highest: int


@dataclass(frozen=True)
class Floors:
    """All floors.

    Attributes:
        roles: By name of the role.
        committed: By task, what was committed.
        approved: By task, what was approved last: it becomes the floor when it is committed.
    """

    roles: Mapping[str, RoleFloor] = field(default_factory=dict)
    committed: Mapping[str, TaskFloor] = field(default_factory=dict)
    approved: Mapping[str, TaskFloor] = field(default_factory=dict)

    def raised(self, seen: Seen) -> Floors:
        """The floors after a refresh: no role may be below its floor, those that were verified raise theirs.

        Raises:
            BelowFloorError: A role is older than its floor, or is not there any more.
        """
        for role, floor in self.roles.items():
            version = seen.versions.get(role, 0)
            if version < floor.version and seen.guard(role) == floor.keys:
                raise BelowFloorError(
                    role,
                    version,
                    floor.version,
                    reason=f"signed metadata are older than what this device has seen: {role} {version or 'missing'},"
                    f" seen {floor.version}",
                )
        verified = {role: RoleFloor(seen.versions[role], seen.guard(role)) for role in seen.verified}
        kept = {role: floor for role, floor in self.roles.items() if role in seen.versions}
        return replace(self, roles={**kept, **verified})

    def approve(self, listing: Listing) -> Floors:
        """The floors after a release was approved.

        Raises:
            BelowFloorError: It is below the committed version of its task.
        """
        floor = self.committed.get(listing.task)
        if floor is not None and floor.keys != listing.keys and listing.highest < floor.version:
            floor = None
        if floor is not None:
            older = listing.version < floor.version
            if older or (listing.version == floor.version and listing.release_id != floor.release_id):
                raise BelowFloorError(
                    listing.task,
                    listing.version,
                    floor.version,
                    reason=f"release {listing.release_id} is approved as version {listing.version} of {listing.task},"
                    f" this device had {floor.version} ({floor.release_id}): going back needs a new signed version",
                    final=True,
                )
        entry = TaskFloor(listing.version, listing.release_id, listing.keys)
        return replace(self, approved={**self.approved, listing.task: entry})

    def commit(self, task: str, version: int) -> Floors:
        """The floors after a release was committed."""
        entry = self.approved.get(task)
        if entry is None or entry.version != version:
            held = self.committed.get(task)
            if held is not None and held.version >= version:
                return self
            entry = TaskFloor(version, "", "" if held is None else held.keys)
        return replace(self, committed={**self.committed, task: entry})

    def to_json(self) -> bytes:
        """The document that :meth:`from_json` reads; it carries its own digest."""
        body = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return json.dumps({"floors": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Floors:
        """Read a document.

        Raises:
            ValueError: It is not what :meth:`to_json` wrote.
        """
        try:
            document = json.loads(data)
            body = document["floors"]
            if hashlib.sha256(body.encode()).hexdigest() != document["sha256"]:
                raise ValueError("its digest is another one")
            content: dict[str, Any] = json.loads(body)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r:.20}")
            return cls(
                roles={name: RoleFloor(**entry) for name, entry in content["roles"].items()},
                committed={name: TaskFloor(**entry) for name, entry in content["committed"].items()},
                approved={name: TaskFloor(**entry) for name, entry in content["approved"].items()},
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


class FloorsFile:
    """The floors on disk; may be used by any thread.

    The file is made before the cache of ngclient is: a cache without floors means that they were lost.
    """

    def __init__(self, places: TrustPlaces, disk: Disk = DISK) -> None:
        """Nothing is read before :meth:`load`."""
        self._places = places
        self._disk = disk
        self._lock = threading.Lock()
        self._floors: Floors | None = None

    def load(self) -> Floors:
        """The floors; a file that could not be read is tried again every time.

        Raises:
            DeviceError: They are damaged or lost.
            OSError: A new device's first ones could not be written.
        """
        with self._lock:
            return self._load()

    def raise_to(self, seen: Seen) -> Floors:
        """See :meth:`Floors.raised`; written down if anything changed.

        Raises:
            BelowFloorError: Nothing changes.
            OSError: It could not be written; nothing changes.
            DeviceError: As :meth:`load`.
        """
        with self._lock:
            return self._keep(self._load().raised(seen))

    def approve(self, seen: Seen, listing: Listing) -> None:
        """See :meth:`Floors.raised` and :meth:`Floors.approve`; raises as :meth:`raise_to`."""
        with self._lock:
            self._keep(self._load().raised(seen).approve(listing))

    def commit(self, task: str, version: int) -> None:
        """See :meth:`Floors.commit`; raises as :meth:`raise_to`."""
        with self._lock:
            self._keep(self._load().commit(task, version))

    def _load(self) -> Floors:
        if self._floors is None:
            self._floors = self._read()
        return self._floors

    def _read(self) -> Floors:
        path = self._places.floors
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= FILE_BYTES else b""
        except FileNotFoundError:
            if self._places.metadata.exists():
                raise self._damaged("is missing") from None
            self._disk.make_folder(path.parent)
            first = Floors()
            self._disk.write_atomically(path, first.to_json())
            return first
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror})") from error
        try:
            return Floors.from_json(data)
        except ValueError as error:
            raise self._damaged(f"is damaged ({error})") from error

    def _damaged(self, what: str) -> DeviceError:
        return DeviceError(
            f"{self._places.floors} {what}: what this device must not go below is not known, nothing is installed",
            remedy="restore the file, or enrol the device again",
        )

    def _keep(self, floors: Floors) -> Floors:
        if floors != self._floors:
            self._disk.write_atomically(self._places.floors, floors.to_json())
            self._floors = floors
        return floors
