"""Keeps the signed metadata true and brings them to the broker: store → folder → retained topics.

Each step reads what the store wants, lets :func:`skerry_server.trust.planning.plan` make what is missing or about to
expire, writes it, and publishes what the broker does not have: delegated roles, targets and snapshot, then the
timestamp that names them, then roots, last the index. Files that nothing refers to any more are cleared afterwards.

Invariants:

* Other processes (``skerry keys rotate``) may change the folder at any time; the next step publishes what it holds.
* When new metadata cannot be made or written, the last good ones are still published, and the step fails with the
  reason.
* :meth:`TrustPublisher.published` says only what the broker has acknowledged on the connection that stands now: after
  every connection everything is published again, for a broker that was killed may have lost it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from skerry_contract.errors import WireError
from skerry_contract.limits import TRUST_FILES
from skerry_contract.topics import TRUST_FILTER, TRUST_INDEX, parse_topic, trust_topic
from skerry_contract.v1 import release_pb2
from skerry_server.config import ServerLayout, TrustSettings
from skerry_server.link import BrokerUnavailableError, Handler
from skerry_server.releases.signing import KeyFileSigner
from skerry_server.store.database import Database
from skerry_server.trust import planning, service
from skerry_server.trust.folder import TrustFolder
from skerry_server.trust.keys import KeyRing, MissingKeysError
from skerry_server.trust.repository import Approved, Repository, TrustFile, Wanted
from skerry_server.trust.wanted import WantedReleases

log = logging.getLogger(__name__)

#: Files per batch; below the link's own limit of messages in flight.
BATCH = 64
#: How long the broker may take to acknowledge a batch (seconds).
ACKNOWLEDGE_S = 15.0


class TrustLink(Protocol):
    """What is needed of :class:`skerry_server.link.ServerLink`."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        """Publish; done at the broker's acknowledgement."""
        ...

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Call the handler for every message that matches."""
        ...

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after every connection."""
        ...


@dataclass(frozen=True)
class Published:
    """What devices can know by now.

    Attributes:
        releases: Releases that they may install, by identifier.
        instruction_keys: Keys whose envelopes they trust, hexadecimal.
    """

    releases: Mapping[str, Approved] = field(default_factory=dict)
    instruction_keys: frozenset[str] = frozenset()


class TrustPublisher:
    """The controller."""

    name = "trust"
    period_s = 0.5

    def __init__(
        self,
        database: Database,
        link: TrustLink,
        layout: ServerLayout,
        settings: TrustSettings,
        signer: KeyFileSigner,
        *,
        folder: TrustFolder | None = None,
        clock: service.Clock = service.now,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            database: The store.
            link: Connection to the broker.
            layout: Where keys and metadata are.
            settings: Lifetimes and bounds.
            signer: Signs envelopes.
            folder: Where the metadata are, if not where the layout says.
            clock: The time.
        """
        self._link = link
        self._signer = signer
        self._clock = clock
        self._folder = folder or TrustFolder(layout.trust)
        self._ring: KeyRing = service.ring_of(layout)
        self._lifetimes = service.lifetimes(settings)
        self._wanted = WantedReleases(database, signer, newest=settings.releases)
        self._repository: Repository | None = None
        self._holds: Wanted | None = None
        self._signature: tuple[tuple[str, int, int], ...] = ()
        self._due: datetime | None = None
        # Under the lock: the dispatcher thread of the link changes them too.
        self._lock = threading.Lock()
        self._sent: dict[str, bytes] = {}
        self._at_broker: set[str] = set()
        self._published = Published()
        self._connection = 0

    def start(self) -> None:
        """Take notice of connections, and of what the broker keeps."""
        self._link.on_connected(self._forget)
        self._link.subscribe(TRUST_FILTER, self._learn)

    def published(self) -> Published:
        """What the broker has on the connection that stands now; from any thread."""
        with self._lock:
            return self._published if self._link.connected else Published()

    def step(self) -> None:
        """Make the metadata say what the store wants, and publish what the broker does not have.

        Raises:
            PlatformError: New metadata cannot be made, or the broker did not acknowledge; tried again.
            OSError: The folder cannot be written.
        """
        failure: Exception | None = None
        try:
            self._reconcile()
        except Exception as error:  # the last good metadata must reach devices all the same
            failure = error
        if self._repository is not None and self._link.connected:
            self._publish(self._repository)
        if failure is not None:
            raise failure

    def _reconcile(self) -> None:
        wanted = self._wanted.read()
        now = self._clock()
        if (
            self._repository is not None
            and self._due is not None
            and now < self._due
            and wanted == self._holds
            and self._signature == self._folder.signature()
        ):
            return
        with self._folder.locked():
            repository = self._repository = self._folder.load()
            self._due = None
            files = [
                *planning.plan(repository, wanted, self._ring, now=now, lifetimes=self._lifetimes),
                *self._renewed_root(repository, now),
            ]
            if files:
                repository = self._repository = self._folder.write(repository, files)
                log.info("signed metadata: %s", ", ".join(file.name for file in files))
            self._signature = self._folder.signature()
        self._holds = repository.wanted()
        self._due = repository.renew_at(self._lifetimes)
        if self._holds != wanted:
            raise RuntimeError("the signed metadata do not say what was wanted")

    def _renewed_root(self, repository: Repository, now: datetime) -> list[TrustFile]:
        """A root for another life if it is time and its keys lie here; otherwise a person brings them."""
        if not self._lifetimes.due(service.ROOT, repository.root.expires, now):
            return []
        try:
            return [planning.next_root(repository, self._ring, now=now, lifetimes=self._lifetimes)]
        except MissingKeysError:
            return []

    def _publish(self, repository: Repository) -> None:
        with self._lock:
            connection, sent = self._connection, dict(self._sent)
        index = release_pb2.TrustIndex()
        for file in repository.files:
            index.files.add(name=file.name, size=len(file.data))
        last = TrustFile(TRUST_INDEX, index.SerializeToString(deterministic=True))
        news = [file for file in repository.files if sent.get(file.name) != file.data]
        if news or sent.get(TRUST_INDEX) != last.data:
            self._send([*news, last], connection)  # the index also says: that was all
        current = {file.name for file in (*repository.files, last)}
        said = repository.wanted()
        with self._lock:
            if connection != self._connection:
                return
            self._published = Published(
                {release.release_id: release for release in said.releases}, frozenset(said.instruction_keys)
            )
            stale = sorted((self._at_broker | set(self._sent)) - current)
        self._send([TrustFile(name, b"") for name in stale], connection)

    def _send(self, files: Sequence[TrustFile], connection: int) -> None:
        """Publish in order and wait; an empty file clears what the broker keeps."""
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            futures = [self._link.publish(trust_topic(file.name), file.data, retain=True) for file in batch]
            until = time.monotonic() + ACKNOWLEDGE_S
            for file, future in zip(batch, futures, strict=True):
                try:
                    future.result(max(0.0, until - time.monotonic()))
                except TimeoutError as error:
                    raise BrokerUnavailableError(f"no acknowledgement in {ACKNOWLEDGE_S:.0f} s") from error
                with self._lock:
                    if connection != self._connection:
                        raise BrokerUnavailableError("the connection was lost meanwhile")
                    if file.data:
                        self._sent[file.name] = file.data
                    else:
                        self._sent.pop(file.name, None)
                        self._at_broker.discard(file.name)

    # The link's dispatcher thread.

    def _forget(self) -> None:
        with self._lock:
            self._connection += 1
            self._sent.clear()
            self._at_broker.clear()
            self._published = Published()

    def _learn(self, topic: str, payload: bytes) -> None:
        """Remember which files the broker keeps: what an earlier process left is cleared."""
        try:
            name = parse_topic(topic).trust_name
        except WireError:
            return
        with self._lock:
            if name and payload and len(self._at_broker) < 4 * TRUST_FILES:
                self._at_broker.add(name)
