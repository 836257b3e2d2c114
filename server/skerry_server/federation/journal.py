"""What of a campaign survives every kill: committed rounds, and the updates of the round that is being collected.

An update is journalled (its parameters flushed to the spool, then its row) before it counts, so a resumed round neither
asks that device again nor loses its work. A round is committed in one transaction and never changes: its number is the
next one, or it was there. With the commit the parameters of its updates are thrown away: one device's update says more
about its data than anybody needs to keep, and disks are finite. Their rows and digests stay.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_server.clock import now_ms
from skerry_server.federation.updates import Update
from skerry_server.files import write_atomically
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.store import Database
from skerry_server.store.tables import CampaignRound, CampaignUpdate

State = dict[str, Array]


@dataclass(frozen=True)
class RoundRecord:
    """A committed round.

    Attributes:
        number: From 1.
        invited: Devices that were asked.
        accepted: Devices whose update counted.
        accuracy: On the server's holdout, 0 to 1.
        loss: Mean training loss of the devices, by examples.
        seconds: How long the round took.
        parameters_sha256: Its model in the artifact store.
        metrics: More figures.
        committed_ms: When.
    """

    number: int
    invited: int
    accepted: int
    accuracy: float
    loss: float
    seconds: float
    parameters_sha256: str
    metrics: dict[str, float]
    committed_ms: int


@dataclass(frozen=True)
class JournalledUpdate:
    """An update that is recorded: who, how many examples, which figures, the digest of its parameters."""

    device_id: str
    examples: int
    metrics: dict[str, float]
    parameters_sha256: str


class CampaignJournal:
    """The journal of one campaign."""

    def __init__(self, database: Database, artifacts: ArtifactStore, campaign_id: str, spool: Path) -> None:
        """Open it; ``spool`` is the folder for the updates of the round that is being collected."""
        self._database = database
        self._artifacts = artifacts
        self._campaign_id = campaign_id
        self._spool = spool

    def rounds(self) -> list[RoundRecord]:
        """Committed rounds, in order."""
        query = sa.select(CampaignRound).where(CampaignRound.campaign_id == self._campaign_id)
        with self._database.reading() as session:
            rows = session.scalars(query.order_by(CampaignRound.number)).all()
            return [
                RoundRecord(
                    number=row.number,
                    invited=row.invited,
                    accepted=row.accepted,
                    accuracy=row.accuracy,
                    loss=row.loss,
                    seconds=row.seconds,
                    parameters_sha256=row.parameters_sha256,
                    metrics=dict(row.metrics),
                    committed_ms=row.committed_ms,
                )
                for row in rows
            ]

    def load(self, parameters_sha256: str) -> State:
        """A state of the artifact store."""
        return decode_bundle(self._artifacts.get_bytes(parameters_sha256))

    def record(self, round_number: int, update: Update) -> None:
        """Make an update durable; recording the same device twice keeps the first."""
        sha256 = hashlib.sha256(update.parameters).hexdigest()
        folder = self._folder(round_number)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / sha256, update.parameters)
        key = (self._campaign_id, round_number, update.device_id)
        with self._database.transaction() as session:
            if session.get(CampaignUpdate, key) is None:
                session.add(
                    CampaignUpdate(
                        campaign_id=self._campaign_id,
                        round=round_number,
                        device_id=update.device_id,
                        examples=update.examples,
                        parameters_sha256=sha256,
                        metrics=update.metrics,
                        received_ms=now_ms(),
                    )
                )

    def recorded(self, round_number: int) -> list[JournalledUpdate]:
        """Updates of a round, in the order in which they came."""
        query = (
            sa.select(CampaignUpdate)
            .where(CampaignUpdate.campaign_id == self._campaign_id, CampaignUpdate.round == round_number)
            .order_by(CampaignUpdate.received_ms, CampaignUpdate.device_id)
        )
        with self._database.reading() as session:
            return [
                JournalledUpdate(row.device_id, row.examples, dict(row.metrics), row.parameters_sha256)
                for row in session.scalars(query)
            ]

    def load_update(self, round_number: int, update: JournalledUpdate) -> State | None:
        """The parameters of a recorded update; None when they are lost or damaged (then the device is asked again)."""
        try:
            data = (self._folder(round_number) / update.parameters_sha256).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != update.parameters_sha256:
            return None
        return decode_bundle(data)

    def forget(self, round_number: int, device_id: str) -> None:
        """Drop a recorded update whose parameters are lost, so that another one of the device can be recorded."""
        with self._database.transaction() as session:
            row = session.get(CampaignUpdate, (self._campaign_id, round_number, device_id))
            if row is not None:
                session.delete(row)

    def _folder(self, round_number: int) -> Path:
        return self._spool / f"round-{round_number}"

    def commit(
        self,
        *,
        number: int,
        invited: int,
        accepted: int,
        accuracy: float,
        loss: float,
        seconds: float,
        state: Mapping[str, Array],
        metrics: dict[str, float],
    ) -> RoundRecord:
        """Commit a round; returns the record, also when another process committed that number first.

        Raises:
            ValueError: The number is not the next one.
        """
        sha256 = self._artifacts.put_bytes(encode_bundle(state))
        latest = sa.select(sa.func.max(CampaignRound.number)).where(CampaignRound.campaign_id == self._campaign_id)
        with self._database.transaction() as session:
            last = session.scalar(latest) or 0
            if number > last + 1:
                raise ValueError(f"round {number} cannot follow round {last}")
            if number == last + 1:
                session.add(
                    CampaignRound(
                        campaign_id=self._campaign_id,
                        number=number,
                        invited=invited,
                        accepted=accepted,
                        accuracy=accuracy,
                        loss=loss,
                        seconds=seconds,
                        parameters_sha256=sha256,
                        metrics=metrics,
                        committed_ms=now_ms(),
                    )
                )
        shutil.rmtree(self._folder(number), ignore_errors=True)
        return self.rounds()[number - 1]
