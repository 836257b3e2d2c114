"""Messages from devices into the store, exactly once, acknowledged after the commit.

A device keeps every message until its UplinkAck comes, and sends it again after a reconnection or a deadline. Here the
key (device, outbox, sequence) in ``uplinks`` is written in the transaction that writes the rows: a message that comes
again finds its key, changes nothing, and is acknowledged again. A kill between commit and acknowledgement is therefore
harmless, and so is one before the commit.

What is not stored:

=======================================  ==============  =============================================================
message                                  acknowledged    why
=======================================  ==============  =============================================================
not protobuf, or too large               no              has no key to acknowledge; a device never makes one
of another device, or without usable     no              the same: its key cannot be trusted
outbox or sequence
of a device that is not enrolled         no              the store may be the one that is wrong (an old backup); the
                                                         device keeps its data until it is enrolled again
usable key, unusable body                yes             it would be refused for ever and hold a place in the outbox;
                                                         its key is recorded with the kind "rejected"
more than :data:`QUEUE` waiting          no              comes again
=======================================  ==============  =============================================================

Each of them is logged with the field, what was expected and what came, and counted.
"""

from __future__ import annotations

import logging
import queue
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_contract.topics import DeviceTopic, device_topic, every_device_filter, parse_topic
from skerry_contract.v1.telemetry_pb2 import UplinkAck, UplinkMessage
from skerry_contract.wire import parse_message
from skerry_server.clock import now_ms
from skerry_server.fitness.ledger import Authority, check_signature
from skerry_server.link import ServerLink
from skerry_server.monitoring.uplink_checks import check_body, check_key
from skerry_server.monitoring.uplink_rows import store_body
from skerry_server.store.database import Database
from skerry_server.store.tables import Device, Uplink
from skerry_server.tally import Tally

log = logging.getLogger(__name__)

#: Messages that wait for the next transaction.
QUEUE = 4_096
#: Messages of one transaction; also the most sequences of one acknowledgement.
BATCH = 256
#: How long an acknowledgement is worth delivering (seconds); a device that was away sends again anyway.
ACK_EXPIRY_S = 60

Key = tuple[str, str, int]


@dataclass(frozen=True)
class _Accepted:
    """A message with a sound key; ``defect`` says why its body can never be used, and is empty if it can."""

    message: UplinkMessage
    kind: str
    defect: str

    @property
    def key(self) -> Key:
        return (self.message.device_id, self.message.outbox_id, self.message.sequence)


class UplinkIngest:
    """Collects messages from the link and writes them in batches; a controller."""

    name = "uplink-ingest"
    period_s = 0.05

    def __init__(
        self,
        database: Database,
        link: ServerLink,
        tally: Tally,
        *,
        queue_length: int = QUEUE,
        authority: Callable[[], Authority] | None = None,
    ) -> None:
        """Prepare; ``authority`` certified the keys by which devices sign. Without one no signature can hold."""
        self._database = database
        self._link = link
        self._tally = tally
        self._authority = authority
        self._queue: queue.Queue[_Accepted] = queue.Queue(queue_length)

    def start(self) -> None:
        """Subscribe; servers that run side by side share the messages."""
        self._link.subscribe(every_device_filter(DeviceTopic.UP, share="server"), self.receive)

    def receive(self, topic: str, payload: bytes) -> None:
        """Check a message and queue it for the next step; never raises for what a device sent."""
        try:
            device_id = parse_topic(topic).device_id or ""
            message = parse_message(UplinkMessage, payload)
            check_key(message, device_id)
        except WireError as error:
            self._tally.add("uplink-refused")
            log.warning("%s: refused: %s", topic, error)
            return
        try:
            accepted = _Accepted(message, check_body(message), "")
        except WireError as error:
            accepted = _Accepted(message, "rejected", str(error))
        try:
            self._queue.put_nowait(accepted)
        except queue.Full:
            self._tally.add("uplink-deferred")
            log.warning("%s: %d messages are waiting, this one has to come again", topic, self._queue.maxsize)

    def step(self) -> None:
        """Write everything that waits, a batch at a time, and acknowledge each batch after its commit."""
        while batch := self._take():
            try:
                stored = self._write(batch)
            except IntegrityError:
                # Another server wrote one of the keys at the same moment: find out which, one by one.
                stored = [key for accepted in batch for key in self._write_alone(accepted)]
            self._acknowledge(stored)

    def _take(self) -> list[_Accepted]:
        batch: list[_Accepted] = []
        while len(batch) < BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch

    def _write(self, batch: Sequence[_Accepted]) -> list[Key]:
        """One transaction; returns the keys that are in the store now."""
        outcomes: list[str] = []
        keys: list[Key] = []
        with self._database.transaction() as session:
            known = _known_devices(session, {accepted.message.device_id for accepted in batch})
            present = _present_keys(session, batch)
            for accepted in batch:
                device = known.get(accepted.message.device_id)
                if device is None:
                    outcomes.append("uplink-unknown-device")
                    log.warning("device %s is not enrolled: its message is left to it", accepted.message.device_id)
                    continue
                keys.append(accepted.key)
                if accepted.key in present:
                    outcomes.append("uplink-duplicate")
                    continue
                present.add(accepted.key)
                accepted = self._signed(device, accepted)
                self._store(session, device, accepted)
                outcomes.append(f"uplink-{accepted.kind}")
        for outcome in outcomes:
            self._tally.add(outcome)
        return keys

    def _write_alone(self, accepted: _Accepted) -> list[Key]:
        try:
            return self._write([accepted])
        except IntegrityError:
            return self._write([accepted])  # the other server has committed: now it is a duplicate

    @staticmethod
    def _store(session: Session, device: Device, accepted: _Accepted) -> None:
        message = accepted.message
        received_ms = now_ms()
        session.add(
            Uplink(
                device_id=message.device_id,
                outbox_id=message.outbox_id,
                sequence=message.sequence,
                kind=accepted.kind,
                created_ms=message.created_unix_ms,
                received_ms=received_ms,
            )
        )
        device.last_seen_ms = max(device.last_seen_ms, received_ms)
        if accepted.defect:
            log.warning("%s %s/%d can never be used: %s", *accepted.key, accepted.defect)
        else:
            store_body(session, device, message, received_ms=received_ms)

    def _signed(self, device: Device, accepted: _Accepted) -> _Accepted:
        """The message, rejected if it ought to be signed by its device and is not."""
        if accepted.defect or accepted.kind != "fitness":
            return accepted
        try:
            if self._authority is None:
                raise WireError("fitness.certificate", expected="an authority to check it by", got="none")
            check_signature(accepted.message.fitness, device, self._authority())
        except WireError as error:
            return _Accepted(accepted.message, "rejected", str(error))
        return accepted

    def _acknowledge(self, keys: Sequence[Key]) -> None:
        sequences: dict[tuple[str, str], list[int]] = defaultdict(list)
        for device_id, outbox_id, sequence in keys:
            sequences[device_id, outbox_id].append(sequence)
        for (device_id, outbox_id), numbers in sequences.items():
            ack = UplinkAck(outbox_id=outbox_id, sequences=numbers)
            # Not waited for: an acknowledgement that is lost makes the device send again.
            self._link.publish(device_topic(device_id, DeviceTopic.ACK), ack.SerializeToString(), expiry_s=ACK_EXPIRY_S)


def _known_devices(session: Session, device_ids: set[str]) -> dict[str, Device]:
    rows = session.scalars(sa.select(Device).where(Device.id.in_(device_ids), Device.revoked.is_(False)))
    return {device.id: device for device in rows}


def _present_keys(session: Session, batch: Sequence[_Accepted]) -> set[Key]:
    sequences: dict[tuple[str, str], list[int]] = defaultdict(list)
    for accepted in batch:
        device_id, outbox_id, sequence = accepted.key
        sequences[device_id, outbox_id].append(sequence)
    present: set[Key] = set()
    for (device_id, outbox_id), numbers in sequences.items():
        rows = session.scalars(
            sa.select(Uplink.sequence).where(
                Uplink.device_id == device_id, Uplink.outbox_id == outbox_id, Uplink.sequence.in_(numbers)
            )
        )
        present.update((device_id, outbox_id, sequence) for sequence in rows)
    return present
