"""What people do with the keys of The Update Framework: make, rotate, renew, look at them.

Every function holds the lock of the metadata while it works, so that the running control plane and the command line
never write at once. The control plane notices by itself that the folder has changed.

Rotating the key of a top-level role happens in two durable steps: first the role is signed by the old *and* the new
key, then the root names the new one alone. Whoever stops in between leaves metadata that verify under both roots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from skerry_server.config import ServerLayout, TrustSettings
from skerry_server.errors import ConflictError, InvalidRequestError, PlatformError
from skerry_server.releases.signing import load_or_create_key, rotate_key
from skerry_server.trust import planning
from skerry_server.trust.folder import TrustFolder
from skerry_server.trust.keys import KeyFolder, KeyRing, MissingKeysError
from skerry_server.trust.repository import ONLINE, Lifetimes, Repository, Wanted, parse

#: Role name by which the key of envelopes is rotated.
INSTRUCTIONS = "instructions"
ROOT = "root"
#: Root keys and how many of them must sign, unless somebody says otherwise.
ROOT_KEYS, ROOT_THRESHOLD = 3, 2
#: Most root keys.
LARGEST_ROOT = 16

Clock = Callable[[], datetime]


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class RoleStatus:
    """One role.

    Attributes:
        role: Its name.
        key_ids: Identifiers of its keys.
        threshold: How many of them must sign.
        version: Version of its newest metadata; 0 for "instructions", which has none.
        expires_ms: When they end, milliseconds since 1970; 0 for "instructions".
        private_keys_here: How many of its private keys lie on the control plane's disk.
    """

    role: str
    key_ids: list[str]
    threshold: int
    version: int
    expires_ms: int
    private_keys_here: int


@dataclass(frozen=True)
class TrustStatus:
    """All of it.

    Attributes:
        roles: Every role, root first, "instructions" last.
        warnings: What somebody should do something about, a sentence each.
        broken: Whether devices refuse the metadata now, or the control plane cannot sign: something has expired, or a
            private key is gone.
    """

    roles: list[RoleStatus]
    warnings: list[str] = field(default_factory=list)
    broken: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def lifetimes(settings: TrustSettings) -> Lifetimes:
    """How long metadata hold, from the settings."""
    return Lifetimes(
        root=timedelta(days=settings.root_days),
        targets=timedelta(days=settings.targets_days),
        snapshot=timedelta(days=settings.snapshot_days),
        timestamp=timedelta(hours=settings.timestamp_hours),
    )


def initialise(
    layout: ServerLayout,
    settings: TrustSettings,
    *,
    offline: Sequence[Path] = (),
    threshold: int = ROOT_THRESHOLD,
    of: int = ROOT_KEYS,
    clock: Clock = now,
) -> TrustStatus:
    """Make every key and the first metadata.

    Args:
        layout: Paths of the data directory.
        settings: Lifetimes.
        offline: Folders for the root keys, on disks that are taken away afterwards; the keys are dealt out to them.
            Without any they lie beside the others.
        threshold: How many root keys must sign a root.
        of: How many there are, 1 to 16.
        clock: The time.

    Raises:
        InvalidRequestError: ``threshold``, ``of`` or ``offline`` cannot be.
        ConflictError: There are keys already.
        PlatformError: A folder cannot be written.
    """
    ring = _ring(layout, offline)
    _check_threshold(threshold, of)
    folder = TrustFolder(layout.trust)
    with _writing(layout, folder):
        if folder.exists():
            raise ConflictError("there are keys already: change them with `skerry keys rotate`")
        _initialise(layout, settings, ring, folder, threshold=threshold, of=of, clock=clock)
        return _status(layout, folder.load(), settings, clock())


def ensure(layout: ServerLayout, settings: TrustSettings, *, clock: Clock = now) -> None:
    """Make keys and first metadata unless they are there; a start that was killed half way is finished.

    Raises:
        PlatformError: A folder cannot be written, or what is there is damaged.
    """
    folder = TrustFolder(layout.trust)
    with _writing(layout, folder):
        if not folder.exists():
            _initialise(layout, settings, _ring(layout), folder, threshold=ROOT_THRESHOLD, of=ROOT_KEYS, clock=clock)
            return
        repository = folder.load()
        if not repository.online:
            _first_metadata(layout, settings, _ring(layout), folder, repository, clock)


def rotate(
    layout: ServerLayout,
    settings: TrustSettings,
    role: str,
    *,
    offline: Sequence[Path] = (),
    threshold: int = 0,
    of: int = 0,
    clock: Clock = now,
) -> TrustStatus:
    """Replace the keys of a role by new ones. Nothing is deleted; the old keys count no more.

    Args:
        layout: Paths of the data directory.
        settings: Lifetimes.
        role: "root", "targets", "snapshot", "timestamp", "model-<task>" or "instructions".
        offline: Folders with root keys; new ones are dealt out to them.
        threshold: Only for root: how many keys must sign from now on; 0 keeps it.
        of: Only for root: how many keys there are from now on; 0 keeps it.
        clock: The time.

    Raises:
        InvalidRequestError: There is no such role, or a number cannot be.
        MissingKeysError: Too few root keys are there.
        PlatformError: Something cannot be read or written.
    """
    ring = _ring(layout, offline)
    folder = TrustFolder(layout.trust)
    with _writing(layout, folder):
        repository = folder.load()
        if role != ROOT and (threshold or of):
            raise InvalidRequestError("threshold", expected="only with root", got=role)
        if role == ROOT:
            repository = _rotate_root(repository, settings, ring, folder, threshold=threshold, of=of, clock=clock)
        elif role in ONLINE:
            repository = _rotate_online(repository, settings, ring, folder, role, clock)
        elif role in repository.delegations:
            delegates = {role: ring.create(role).public_key}
            files = planning.plan(
                repository,
                repository.wanted(),
                ring,
                now=clock(),
                lifetimes=lifetimes(settings),
                delegates=delegates,
            )
            repository = folder.write(repository, files)
        elif role == INSTRUCTIONS:
            rotate_key(layout)
        else:
            known = ", ".join([ROOT, *ONLINE, *sorted(repository.delegations), INSTRUCTIONS])
            raise InvalidRequestError("role", expected=f"one of {known}", got=role)
        return _status(layout, repository, settings, clock())


def renew_root(
    layout: ServerLayout, settings: TrustSettings, *, offline: Sequence[Path] = (), clock: Clock = now
) -> TrustStatus:
    """Sign the same root keys again for another life.

    Raises:
        InvalidRequestError: ``offline`` cannot be.
        MissingKeysError: Too few root keys are there.
        PlatformError: Something cannot be read or written.
    """
    ring = _ring(layout, offline)
    folder = TrustFolder(layout.trust)
    with _writing(layout, folder):
        repository = folder.load()
        file = planning.next_root(repository, ring, now=clock(), lifetimes=lifetimes(settings))
        return _status(layout, folder.write(repository, [file]), settings, clock())


def status(layout: ServerLayout, settings: TrustSettings, *, clock: Clock = now) -> TrustStatus:
    """How the keys and metadata are; changes nothing.

    Raises:
        PlatformError: There are none, or they are damaged.
    """
    folder = TrustFolder(layout.trust)
    if not folder.exists():
        folder.load()  # says what to do
    with _writing(layout, folder):
        return _status(layout, folder.load(), settings, clock())


def current_root(layout: ServerLayout) -> bytes:
    """The newest root, for a device that enrols; needs no lock. Raises PlatformError if there is none."""
    return TrustFolder(layout.trust).newest_root()


def ring_of(layout: ServerLayout) -> KeyRing:
    """The private keys on the control plane's own disk."""
    return KeyRing(KeyFolder(layout.trust_keys))


def _initialise(
    layout: ServerLayout,
    settings: TrustSettings,
    ring: KeyRing,
    folder: TrustFolder,
    *,
    threshold: int,
    of: int,
    clock: Clock,
) -> None:
    file = planning.first_root(ring, threshold=threshold, of=of, now=clock(), lifetimes=lifetimes(settings))
    folder.add(file)
    _first_metadata(layout, settings, ring, folder, parse({file.name: file.data}), clock)


def _first_metadata(
    layout: ServerLayout,
    settings: TrustSettings,
    ring: KeyRing,
    folder: TrustFolder,
    repository: Repository,
    clock: Clock,
) -> None:
    wanted = Wanted(instruction_keys=(load_or_create_key(layout).public_key.hex(),))
    files = planning.plan(repository, wanted, ring, now=clock(), lifetimes=lifetimes(settings))
    folder.write(repository, files)


def _rotate_root(
    repository: Repository,
    settings: TrustSettings,
    ring: KeyRing,
    folder: TrustFolder,
    *,
    threshold: int,
    of: int,
    clock: Clock,
) -> Repository:
    old_keys, old_threshold = repository.keys_of(ROOT)
    threshold, of = threshold or old_threshold, of or len(old_keys)
    _check_threshold(threshold, of)
    ring.signers(ROOT, old_keys, old_threshold)  # before anything is made
    keys = {ROOT: ring.create_root(of)}
    file = planning.next_root(
        repository, ring, now=clock(), lifetimes=lifetimes(settings), keys=keys, threshold=threshold
    )
    return folder.write(repository, [file])


def _rotate_online(
    repository: Repository, settings: TrustSettings, ring: KeyRing, folder: TrustFolder, role: str, clock: Clock
) -> Repository:
    ring.signers(ROOT, *repository.keys_of(ROOT))  # before anything is made
    fresh = ring.create(role)
    with contextlib.suppress(MissingKeysError):  # a lost key cannot sign beside its successor: the root goes first
        files = planning.plan(
            repository,
            repository.wanted(),
            ring,
            now=clock(),
            lifetimes=lifetimes(settings),
            also={role: fresh},
        )
        repository = folder.write(repository, files)
    root = planning.next_root(repository, ring, now=clock(), lifetimes=lifetimes(settings), keys={role: [fresh]})
    repository = folder.write(repository, [root])
    files = planning.plan(repository, repository.wanted(), ring, now=clock(), lifetimes=lifetimes(settings))
    return folder.write(repository, files)


def _status(layout: ServerLayout, repository: Repository, settings: TrustSettings, moment: datetime) -> TrustStatus:
    folder = KeyFolder(layout.trust_keys)
    lives = lifetimes(settings)
    roles: list[RoleStatus] = []
    warnings: list[str] = []
    broken = False
    signed = {ROOT: repository.roots[-1], **repository.online}
    for role in (ROOT, *ONLINE, *sorted(repository.models)):
        if role not in signed:
            continue
        keys, threshold = repository.keys_of(role)
        here = sum(folder.holds(role, key.keyid) for key in keys)
        expires = signed[role].signed.expires
        roles.append(
            RoleStatus(
                role=role,
                key_ids=[key.keyid for key in keys],
                threshold=threshold,
                version=signed[role].signed.version,
                expires_ms=round(expires.timestamp() * 1000),
                private_keys_here=here,
            )
        )
        remedy = "run `skerry keys renew --offline DIR`" if role == ROOT else "is the control plane running?"
        # The control plane signs again at a third; a quarter means that it does not.
        late = lives.of(role) / (3 if role == ROOT and here < threshold else 4)
        if expires <= moment:
            broken = True
            warnings.append(f"{role} expired on {expires:%Y-%m-%d %H:%M} UTC and blocks every installation: {remedy}")
        elif expires - moment <= late:
            warnings.append(f"{role} expires on {expires:%Y-%m-%d %H:%M} UTC: {remedy}")
        if role != ROOT and here < threshold:
            broken = True
            warnings.append(f"the private key of {role} is not in {folder.path}: `skerry keys rotate {role}`")
    if roles[0].private_keys_here:
        warnings.append(
            f"{roles[0].private_keys_here} of the root keys lie on this disk: whoever takes it over can speak for the "
            "fleet's owner; move them away with `skerry keys rotate root --offline DIR`"
        )
    unused = folder.unused((role.role, key_id) for role in roles for key_id in role.key_ids)
    if unused:
        warnings.append(f"key files that count no more can be deleted from {folder.path}: {', '.join(unused)}")
    listed = list(repository.wanted().instruction_keys)
    signer = load_or_create_key(layout).public_key.hex()
    roles.append(RoleStatus(INSTRUCTIONS, listed or [signer], 1, 0, 0, int(signer in listed)))
    if listed != [signer]:
        warnings.append("the new key of instructions is not in the signed metadata yet: is the control plane running?")
    return TrustStatus(roles, warnings, broken)


def _ring(layout: ServerLayout, offline: Sequence[Path] = ()) -> KeyRing:
    folders = []
    for path in offline:
        folder = path.expanduser().resolve()
        if not folder.is_dir():
            raise InvalidRequestError("offline", expected="a folder that exists, on a disk of its own", got=path)
        if folder.is_relative_to(layout.root.resolve()):
            raise InvalidRequestError("offline", expected="a folder outside the data directory", got=path)
        folders.append(KeyFolder(folder, private=False))
    return KeyRing(KeyFolder(layout.trust_keys), folders)


def _check_threshold(threshold: int, of: int) -> None:
    if not 1 <= of <= LARGEST_ROOT:
        raise InvalidRequestError("of", expected=f"1 to {LARGEST_ROOT} root keys", got=of)
    if not 1 <= threshold <= of:
        raise InvalidRequestError("threshold", expected=f"1 to {of}, the number of root keys", got=threshold)


@contextlib.contextmanager
def _writing(layout: ServerLayout, folder: TrustFolder) -> Iterator[None]:
    try:
        with folder.locked():
            yield
    except OSError as error:
        raise PlatformError(
            f"{layout.trust} cannot be written ({error.strerror})", remedy="check its permissions and the disk"
        ) from error
