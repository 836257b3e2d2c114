"""One refresh of the signed metadata by python-tuf's ngclient, and what it says of a release.

Together with :mod:`~skerry_agent.trust.fetcher` the only code of the agent that knows python-tuf. ngclient implements
the client workflow of the specification (section 5); what is added is a time that the local clock does not decide
alone, the result in terms of the floors, and one family of errors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from tuf.api import exceptions as tuf
from tuf.api.metadata import Role, Signed, TargetFile, Targets
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from skerry_agent.trust.errors import TrustError
from skerry_agent.trust.fetcher import BASE_URL, MqttFetcher
from skerry_agent.trust.floors import LARGEST_VERSION, Listing, Seen
from skerry_agent.trust.keyring import CURRENT_KEYS
from skerry_agent.trust.places import TrustPlaces
from skerry_contract.limits import TRUST_FILE_BYTES, TRUST_FILES

#: Most roots since the anchor, and most delegations on the way to one release.
ROOT_ROTATIONS = TRUST_FILES
DELEGATIONS = 8
#: Field of timestamp and snapshot: when they were signed (Unix ms).
ISSUED = "x-skerry-issued"
#: Top-level target whose custom data list the keys of instructions.
KEYS_TARGET = "keys"
KEYS_FIELD = "instruction_keys"
#: Custom datum of a release: the number of its approval.
VERSION_FIELD = "version"
_KEY = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Refreshed:
    """A complete, verified state of the metadata.

    Attributes:
        seen: Versions, for the floors.
        issued_ms: When the newest of it was signed (Unix ms); 0 if it does not say.
        instruction_keys: Keys that may sign desired states now, hexadecimal; empty if it does not say.
    """

    seen: Seen
    issued_ms: int
    instruction_keys: tuple[str, ...]


class Session:
    """Used once: one refresh, then any number of look-ups in the state that it found."""

    def __init__(self, places: TrustPlaces, anchor: bytes, fetcher: MqttFetcher, now: datetime) -> None:
        """Load the anchor.

        Args:
            places: Where ngclient keeps its cache.
            anchor: Root metadata of the enrolment.
            fetcher: Brings files.
            now: Moment by which metadata expire.

        Raises:
            TrustError: The anchor is no root metadata that verifies.
            OSError: The cache cannot be written.
        """
        self._now = now
        with _as_trust_errors(now):
            self._client = Updater(
                str(places.metadata),
                BASE_URL,
                fetcher=fetcher,
                config=UpdaterConfig(
                    max_root_rotations=ROOT_ROTATIONS,
                    max_delegations=DELEGATIONS,
                    root_max_length=TRUST_FILE_BYTES,
                    timestamp_max_length=TRUST_FILE_BYTES,
                    snapshot_max_length=TRUST_FILE_BYTES,
                    targets_max_length=TRUST_FILE_BYTES,
                ),
                bootstrap=anchor,
            )
        # python-tuf keeps what it trusts to itself; its version is pinned for this.
        self._trusted = self._client._trusted_set  # noqa: SLF001
        self._trusted.reference_time = now

    def refresh(self) -> Refreshed:
        """Bring the top-level metadata up to date and verify them.

        Raises:
            TrustError: They are not there, do not verify, or have expired.
            OSError: The disk failed.
        """
        with _as_trust_errors(self._now):
            self._client.refresh()
        return Refreshed(self.seen(), self._issued_ms(), self._instruction_keys())

    def seen(self) -> Seen:
        """What was found so far; a look-up adds the role of its task."""
        versions = {name.removesuffix(".json"): file.version for name, file in self._trusted.snapshot.meta.items()}
        versions |= {
            signed.type: signed.version
            for signed in (self._trusted.root, self._trusted.timestamp, self._trusted.snapshot, self._trusted.targets)
        }
        roles = self._trusted.root.roles
        verified = frozenset(self._loaded())
        return Seen(versions, verified, _fingerprint(roles["timestamp"]), _fingerprint(roles["snapshot"]))

    def check_expiry(self, now: datetime) -> None:
        """Hold everything that was loaded against a later moment; raises TrustError."""
        for role, signed in self._loaded().items():
            if signed.is_expired(now):
                raise TrustError(_expired(role, now))

    def look_up(self, task: str, release_id: str, envelope: bytes) -> Listing:
        """Find a release and hold its bytes against what is listed.

        Raises:
            TrustError: It is not listed, is another one, or the listing is not ours.
            OSError: The disk failed.
        """
        path = f"{task}/{release_id}"
        with _as_trust_errors(self._now):
            target = self._client.get_targetinfo(path)
        if target is None:
            raise TrustError(f"release {release_id} is not listed in the signed metadata")
        version = _version(target)
        if "sha256" not in target.hashes:
            raise TrustError(f"{path} is listed without a SHA-256")
        if len(envelope) != target.length or hashlib.sha256(envelope).hexdigest() != target.hashes["sha256"]:
            raise TrustError(f"release {release_id} is not the one that the signed metadata list", final=True)
        role, holder = self._holder(path, target)
        highest = max(_version(other) for name, other in holder.targets.items() if name.startswith(f"{task}/"))
        return Listing(task, release_id, version, self._fingerprint(role), highest)

    def _loaded(self) -> Mapping[str, Signed]:
        return {role: self._trusted[role] for role in self._trusted._trusted_set}  # noqa: SLF001

    def _issued_ms(self) -> int:
        """When the timestamp was signed; not believed if something that was loaded had expired by then."""
        issued = self._trusted.timestamp.unrecognized_fields.get(ISSUED, 0)
        if type(issued) is not int or not 0 <= issued <= LARGEST_VERSION:
            raise TrustError(f"the timestamp's {ISSUED} is {issued!r:.40}")
        soonest = min(signed.expires for signed in self._loaded().values())
        return issued if issued < soonest.replace(tzinfo=UTC).timestamp() * 1000 else 0

    def _instruction_keys(self) -> tuple[str, ...]:
        target = self._trusted.targets.targets.get(KEYS_TARGET)
        if target is None:
            return ()
        custom = target.custom
        keys = custom.get(KEYS_FIELD) if isinstance(custom, dict) else None
        if (
            not isinstance(keys, list)
            or not 1 <= len(keys) <= CURRENT_KEYS
            or not all(isinstance(key, str) and _KEY.match(key) for key in keys)
        ):
            raise TrustError(f"the target {KEYS_TARGET!r} does not list 1 to {CURRENT_KEYS} keys")
        return tuple(keys)

    def _holder(self, path: str, target: TargetFile) -> tuple[str, Targets]:
        for role, signed in self._loaded().items():
            if isinstance(signed, Targets) and signed.targets.get(path) is target:
                return role, signed
        raise RuntimeError(f"{path} was found in no role")

    def _fingerprint(self, role: str) -> str:
        """Of the keys of a targets role; a delegation of a delegation has none, its floor never falls."""
        if role == Targets.type:
            return _fingerprint(self._trusted.root.roles[role])
        delegations = self._trusted.targets.delegations
        delegated = None if delegations is None or delegations.roles is None else delegations.roles.get(role)
        return "" if delegated is None else _fingerprint(delegated)


def _fingerprint(role: Role) -> str:
    return hashlib.sha256("\n".join(sorted(role.keyids)).encode()).hexdigest()[:32]


def _version(target: TargetFile) -> int:
    custom = target.custom
    version = custom.get(VERSION_FIELD) if isinstance(custom, dict) else None
    if type(version) is not int or not 1 <= version <= LARGEST_VERSION:
        raise TrustError(f"{target.path} is listed without a version from 1")
    return version


def _expired(what: str, now: datetime) -> str:
    return f"signed metadata have expired ({what}) at {now:%Y-%m-%d %H:%M} UTC, as this device knows the time"


@contextmanager
def _as_trust_errors(now: datetime) -> Iterator[None]:
    try:
        yield
    except tuf.ExpiredMetadataError as error:
        raise TrustError(_expired(str(error), now)) from error
    except tuf.DownloadHTTPError as error:
        raise TrustError(f"signed metadata are not complete: {error}") from error
    except tuf.DownloadError as error:
        # What the fetcher raised, wrapped by its interface.
        if isinstance(error.__cause__, TrustError):
            raise error.__cause__ from None
        raise TrustError(f"signed metadata refused: {error}") from error
    except tuf.RepositoryError as error:
        raise TrustError(f"signed metadata refused: {type(error).__name__}: {error}"[:300]) from error
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        # Signed by the right keys, and yet nothing that python-tuf expects.
        raise TrustError(f"signed metadata are malformed: {type(error).__name__}: {error}"[:300]) from error
