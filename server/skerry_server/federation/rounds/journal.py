"""What of a campaign survives every kill: committed rounds, and the updates of the round that is being collected.

An update is journalled (its payload flushed to the spool, then its row) before it counts, so a resumed round neither
asks that device again nor loses its work. A round is committed in one transaction, with what the strategy carries on,
and never changes: its number is the next one, or it was there. With the commit the payloads of its updates are thrown
away: one device's update says more about its data than anybody needs to keep, and disks are finite. Their rows and
digests stay.

Every write may be done twice, so each is repeated while the database is away (:mod:`~.patience`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_server.clock import now_ms
from skerry_server.federation.rounds.carried import Carried
from skerry_server.federation.rounds.patience import Patience
from skerry_server.federation.rounds.updates import SITE_DEVICES, Payload, Update
from skerry_server.files import write_atomically
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.store import Database
from skerry_server.store.tables import CampaignRound, CampaignUpdate

State = dict[str, Array]

#: Metric of an update: the committed round whose model its device started from; without it the one before.
BASE_ROUND = "base_round"
#: Metric of a round that was skipped: its number is used up, its model is that of the round before.
SKIPPED = "skipped"
#: Of a row only: the devices of a secure sum.
_MEMBERS = "members"


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
        strategy_sha256: What it carries on (:class:`~.carried.Carried`) in the artifact store; empty for nothing.
        failures: Device to why its answer did not count.
        privacy: What the round spent; empty without privacy.
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
    strategy_sha256: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether it made no model of its own."""
        return SKIPPED in self.metrics


@dataclass(frozen=True)
class JournalledUpdate:
    """An update that is recorded: who, how many examples, which figures, the digest of its payload."""

    device_id: str
    examples: int
    metrics: dict[str, float]
    parameters_sha256: str


#: Hears, inside the transaction of a commit, of the round and of the updates that count in it, one for each device;
#: those of a secure sum are made for this call only.
OnCommit = Callable[[Session, CampaignRound, Sequence[CampaignUpdate]], None]


class CampaignJournal:
    """The journal of one campaign."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        campaign_id: str,
        spool: Path,
        *,
        patience: Patience | None = None,
        on_commit: OnCommit = lambda session, committed, updates: None,
    ) -> None:
        """Open it.

        Args:
            database: Where rounds and updates are written down.
            artifacts: Where models go.
            campaign_id: Whose journal.
            spool: Folder for the updates of the round that is being collected.
            patience: How long an absent database is waited for.
            on_commit: See :data:`OnCommit`.
        """
        self._database = database
        self._artifacts = artifacts
        self._campaign_id = campaign_id
        self._spool = spool
        self._patience = patience or Patience()
        self._on_commit = on_commit

    def rounds(self) -> list[RoundRecord]:
        """Committed rounds, in order."""
        query = sa.select(CampaignRound).where(CampaignRound.campaign_id == self._campaign_id)

        def read() -> list[RoundRecord]:
            with self._database.reading() as session:
                return [_record(row) for row in session.scalars(query.order_by(CampaignRound.number))]

        return self._patience.run(read)

    def load(self, parameters_sha256: str) -> State:
        """A state of the artifact store."""
        return decode_bundle(self._artifacts.get_bytes(parameters_sha256))

    def carried(self, record: RoundRecord) -> Carried:
        """What a committed round carries on."""
        if not record.strategy_sha256:
            return Carried()
        return Carried.decode(self._artifacts.get_bytes(record.strategy_sha256))

    def scratch(self, round_number: int) -> Path:
        """An existing folder for files that live as long as the round is collected."""
        folder = self._folder(round_number) / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, round_number: int, update: Update) -> None:
        """Make an update durable; recording the same device twice keeps the first."""
        data = update.payload.pack()
        sha256 = hashlib.sha256(data).hexdigest()
        folder = self._folder(round_number)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / sha256, data)
        key = (self._campaign_id, round_number, update.device_id)
        newest = sa.select(sa.func.max(CampaignUpdate.received_ms)).where(
            CampaignUpdate.campaign_id == self._campaign_id, CampaignUpdate.round == round_number
        )

        def write() -> None:
            with self._database.transaction() as session:
                if session.get(CampaignUpdate, key) is not None:
                    return
                # Strictly rising, so that a resumed round adds them in the order in which they came.
                received_ms = max(now_ms(), (session.scalar(newest) or 0) + 1)
                session.add(
                    CampaignUpdate(
                        campaign_id=self._campaign_id,
                        round=round_number,
                        device_id=update.device_id,
                        examples=update.examples,
                        parameters_sha256=sha256,
                        metrics={**update.metrics, **({_MEMBERS: list(update.members)} if update.members else {})},
                        received_ms=received_ms,
                    )
                )

        self._patience.run(write)

    def recorded(self, round_number: int) -> list[JournalledUpdate]:
        """Updates of a round, in the order in which they came."""

        def read() -> list[JournalledUpdate]:
            with self._database.reading() as session:
                return [_journalled(row) for row in session.scalars(self._updates(round_number))]

        return self._patience.run(read)

    def _updates(self, round_number: int) -> sa.Select[CampaignUpdate]:
        return (
            sa.select(CampaignUpdate)
            .where(CampaignUpdate.campaign_id == self._campaign_id, CampaignUpdate.round == round_number)
            .order_by(CampaignUpdate.received_ms, CampaignUpdate.device_id)
        )

    def load_update(self, round_number: int, update: JournalledUpdate) -> Payload | None:
        """The payload of a recorded update; None when it is lost or damaged (then the device is asked again)."""
        try:
            data = (self._folder(round_number) / update.parameters_sha256).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != update.parameters_sha256:
            return None
        return Payload.unpack(data)

    def forget(self, round_number: int, device_id: str) -> None:
        """Drop a recorded update whose payload is lost, so that another one of the device can be recorded."""

        def write() -> None:
            with self._database.transaction() as session:
                row = session.get(CampaignUpdate, (self._campaign_id, round_number, device_id))
                if row is not None:
                    session.delete(row)

        self._patience.run(write)

    def counted(self) -> dict[str, int]:
        """Device to the newest instruction of which its answer counted, by the round that the instruction named."""
        query = sa.select(CampaignUpdate.device_id, CampaignUpdate.round, CampaignUpdate.metrics).where(
            CampaignUpdate.campaign_id == self._campaign_id
        )

        def read() -> dict[str, int]:
            newest: dict[str, int] = {}
            with self._database.reading() as session:
                for device_id, number, metrics in session.execute(query):
                    named = int(metrics.get(BASE_ROUND, number - 1)) + 1
                    newest[device_id] = max(newest.get(device_id, 0), named)
            return newest

        return self._patience.run(read)

    def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A secret of the campaign: made once, kept in the spool and destroyed with it when the campaign has ended."""
        path = self._spool / name
        if not path.exists():
            self._spool.mkdir(parents=True, exist_ok=True)
            write_atomically(path, make())
        return path.read_bytes()

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
        carried: Carried | None = None,
        failures: Mapping[str, str] | None = None,
        privacy: Mapping[str, Any] | None = None,
    ) -> RoundRecord:
        """Commit a round; returns the record, also when another process committed that number first.

        Raises:
            ValueError: The number is not the next one.
        """
        sha256 = self._artifacts.put_bytes(encode_bundle(state))
        legacy = carried.encode() if carried is not None else b""
        strategy_sha256 = self._artifacts.put_bytes(legacy) if legacy else ""
        latest = sa.select(sa.func.max(CampaignRound.number)).where(CampaignRound.campaign_id == self._campaign_id)

        def write() -> None:
            with self._database.transaction() as session:
                last = session.scalar(latest) or 0
                if number > last + 1:
                    raise ValueError(f"round {number} cannot follow round {last}")
                if number <= last:
                    return
                row = CampaignRound(
                    campaign_id=self._campaign_id,
                    number=number,
                    invited=invited,
                    accepted=accepted,
                    accuracy=accuracy,
                    loss=loss,
                    seconds=seconds,
                    parameters_sha256=sha256,
                    strategy_sha256=strategy_sha256,
                    privacy=dict(privacy or {}),
                    failures=dict(failures or {}),
                    metrics=metrics,
                    committed_ms=now_ms(),
                )
                session.add(row)
                updates = [each for recorded in session.scalars(self._updates(number)) for each in _by_device(recorded)]
                self._on_commit(session, row, updates)

        self._patience.run(write)
        shutil.rmtree(self._folder(number), ignore_errors=True)
        return self.rounds()[number - 1]


def _record(row: CampaignRound) -> RoundRecord:
    return RoundRecord(
        number=row.number,
        invited=row.invited,
        accepted=row.accepted,
        accuracy=row.accuracy,
        loss=row.loss,
        seconds=row.seconds,
        parameters_sha256=row.parameters_sha256,
        metrics=dict(row.metrics),
        committed_ms=row.committed_ms,
        strategy_sha256=row.strategy_sha256,
        failures=dict(row.failures),
        privacy=dict(row.privacy),
    )


def _journalled(row: CampaignUpdate) -> JournalledUpdate:
    metrics = {name: value for name, value in row.metrics.items() if name != _MEMBERS}
    return JournalledUpdate(row.device_id, row.examples, metrics, row.parameters_sha256)


def _by_device(row: CampaignUpdate) -> list[CampaignUpdate]:
    """The row itself, or one for each device whose updates it is the sum of; from a gateway both."""
    members = row.metrics.get(_MEMBERS, [])
    shared = {"campaign_id": row.campaign_id, "round": row.round, "received_ms": row.received_ms}
    rows = [
        CampaignUpdate(device_id=member, examples=1, parameters_sha256="", metrics={}, **shared) for member in members
    ]
    return [*rows, row] if not rows or SITE_DEVICES in row.metrics else rows
