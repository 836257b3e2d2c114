"""What the store wants the signed metadata to say: which releases may be installed, under which number.

A release may be installed while it is available. Of each task that is the newest releases by approval, the champion,
and what devices are told to run, so that the list stays small enough for one message.

When the key of envelopes has been rotated, the envelopes of those releases are signed again: the same manifest, another
signature. Devices that have not installed theirs yet get a new instruction in the same transaction, because the one
they have names an envelope that the metadata do not list any more.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from sqlalchemy.orm import Session

from skerry_contract.signing import RELEASE, key_id
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_server.audit import ledger
from skerry_server.releases import candidate_machine
from skerry_server.releases.signing import KeyFileSigner
from skerry_server.store.database import Database
from skerry_server.store.tables import ChampionEntry, Device, Release
from skerry_server.trust.repository import Approved, Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Envelope:
    """What is kept of an envelope: its digest, its size, and who signed it (empty for one that is not ours)."""

    length: int
    sha256: str
    signed_by: frozenset[str]


class WantedReleases:
    """Reads the store; remembers the digests of envelopes, which only this object changes."""

    def __init__(self, database: Database, signer: KeyFileSigner, *, newest: int) -> None:
        """Prepare; nothing is read.

        Args:
            database: The store.
            signer: Signs envelopes again after a rotation.
            newest: How many releases of a task may be installed, beside the champion and what devices are to run.
        """
        self._database = database
        self._signer = signer
        self._newest = newest
        self._envelopes: dict[str, _Envelope] = {}

    def read(self) -> Wanted:
        """What shall be true now; envelopes of an earlier key have been signed again when this returns."""
        public_key = self._signer.public_key
        signer = key_id(public_key)
        with self._database.reading() as session:
            chosen = self._chosen(session)
            self._learn(session, [release_id for _, release_id, _ in chosen])
        known = {release_id: self._envelopes[release_id] for _, release_id, _ in chosen}
        stale = [name for name, envelope in known.items() if envelope.signed_by and signer not in envelope.signed_by]
        if stale:
            self._sign_again(stale)
        releases = []
        for task, release_id, version in chosen:
            envelope = self._envelopes[release_id]
            if envelope.signed_by:
                releases.append(Approved(task, release_id, version, envelope.length, envelope.sha256))
        return Wanted(tuple(sorted(releases, key=_place)), (public_key.hex(),))

    def _chosen(self, session: Session) -> list[tuple[str, str, int]]:
        """(task, release, number of its approval) of every release that may be installed."""
        last = sa.select(sa.func.max(ChampionEntry.id)).group_by(ChampionEntry.task)
        kept = set(session.scalars(sa.select(ChampionEntry.release_id).where(ChampionEntry.id.in_(last))))
        kept |= set(
            session.scalars(
                sa.select(Device.desired_release)
                .where(Device.desired_release != "", Device.revoked.is_(False))
                .distinct()
            )
        )
        rows = session.execute(
            sa.select(Release.task, Release.id, Release.approved_version)
            .where(Release.state == candidate_machine.AVAILABLE, Release.approved_version > 0)
            .order_by(Release.task, Release.approved_version.desc(), Release.id)
        )
        newest: defaultdict[str, int] = defaultdict(int)
        beside: defaultdict[str, int] = defaultdict(int)
        chosen = []
        for task, release_id, version in rows:
            count = newest if newest[task] < self._newest else beside
            if count is beside and (release_id not in kept or beside[task] >= self._newest):
                continue
            count[task] += 1
            chosen.append((task, release_id, int(version)))
        return chosen

    def _learn(self, session: Session, release_ids: list[str]) -> None:
        """Read the envelopes that are not known yet, one at a time: they are large."""
        for release_id in release_ids:
            if release_id not in self._envelopes:
                data = session.scalar(sa.select(Release.envelope).where(Release.id == release_id)) or b""
                self._envelopes[release_id] = _examine(release_id, data)

    def _sign_again(self, release_ids: list[str]) -> None:
        fresh: dict[str, _Envelope] = {}
        with self._database.transaction() as session:
            for release_id in release_ids:
                release = session.get_one(Release, release_id)
                payload = SignedEnvelope.FromString(release.envelope).payload
                release.envelope = self._signer.sign(RELEASE, payload).SerializeToString()
                fresh[release_id] = _examine(release_id, release.envelope)
            session.execute(
                sa.update(Device)
                .where(Device.desired_release.in_(release_ids), Device.desired_release != Device.active_release)
                .values(desired_sequence=Device.desired_sequence + 1)
            )
            ledger.append(
                session,
                actor="system",
                action="release.sign-again",
                subject=key_id(self._signer.public_key),
                detail={"releases": sorted(release_ids)},
            )
        self._envelopes.update(fresh)
        log.info("%d envelopes signed again with key %s", len(fresh), key_id(self._signer.public_key))


def _examine(release_id: str, data: bytes) -> _Envelope:
    try:
        envelope = SignedEnvelope.FromString(data)
    except DecodeError:
        envelope = SignedEnvelope()
    signed_by = frozenset(signature.key_id for signature in envelope.signatures) if envelope.payload else frozenset()
    if not signed_by:
        log.error("release %s is not approved: its row holds no signed envelope", release_id)
    return _Envelope(len(data), hashlib.sha256(data).hexdigest(), signed_by)


def _place(release: Approved) -> tuple[str, str]:
    """The order in which the metadata have them."""
    return f"model-{release.task}", f"{release.task}/{release.release_id}"
