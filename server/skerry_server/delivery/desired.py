"""Publishes what is wanted of each device: a signed, retained DesiredState on the device's own topic.

The store is the truth. Whoever wants something changes the ``desired_*`` columns and adds one to
``desired_sequence``; this publisher sends what is above ``published_sequence`` and moves that one up after the broker's
acknowledgement. A kill at any point only means that the same sequence is published again, which devices ignore.

A broker that was killed may have lost retained messages: after every connection everything is published again.

Devices install what the signed metadata approve, and trust the keys that they list. So a desired state is held back
until the metadata that approve its release, and its own signature, have been published on the same connection.
:meth:`DesiredPublisher.waits` says what is held back and why; nothing here waits for it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.signing import DESIRED, Ed25519Signer
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState
from skerry_server.clock import now_ms
from skerry_server.link import BrokerUnavailableError, ServerLink
from skerry_server.releases.signing import KeyFileSigner
from skerry_server.store.database import Database
from skerry_server.store.tables import Device, Release
from skerry_server.trust.publisher import Published

log = logging.getLogger(__name__)

#: Devices per step; below the link's own limit of messages in flight.
BATCH = 200
#: How long the broker may take to acknowledge a batch (seconds).
ACKNOWLEDGE_S = 15.0


@dataclass(frozen=True)
class _Wanted:
    """What is to be sent to one device."""

    device_id: str
    sequence: int
    release_id: str
    rollout_id: str
    probation_ms: int
    envelope: bytes | None
    approved_version: int
    reconnect_spread_ms: int
    preferred: tuple[str, ...]


#: From pairs of release and profile of a device to names of variants; pairs without any are left out.
Preferred = Callable[[Session, Sequence[tuple[str, str]]], Mapping[tuple[str, str], Sequence[str]]]


class Approvals(Protocol):
    """Knows what devices can know of approved releases; see ``trust.publisher.TrustPublisher``."""

    def published(self) -> Published:
        """What the broker has on the connection that stands now."""
        ...


class DesiredPublisher:
    """The controller."""

    name = "desired-state"
    period_s = 0.25

    def __init__(
        self,
        database: Database,
        link: ServerLink,
        signer: Ed25519Signer | KeyFileSigner,
        approvals: Approvals,
        *,
        spread_ms: Callable[[Session], int] = lambda _session: 0,
        preferred: Preferred = lambda _session, _wanted: {},
    ) -> None:
        """Prepare; :meth:`start` takes notice of connections.

        Args:
            database: The store.
            link: Connection to the broker.
            signer: Signs desired states.
            approvals: What has been published of the signed metadata.
            spread_ms: Over how long devices spread their reconnection (milliseconds).
            preferred: The forms that are enough for a kind of device: ``fitness.ledger.preferred_variants``.
        """
        self._database = database
        self._link = link
        self._signer = signer
        self._approvals = approvals
        self._spread_ms = spread_ms
        self._preferred = preferred
        self._everything = threading.Event()
        self._refused: dict[str, int] = {}
        self._public_key = b""
        self._waits: list[str] = []

    def waits(self) -> list[str]:
        """What is held back and why, a sentence each; from any thread."""
        return list(self._waits)

    def start(self) -> None:
        """Take notice of connections to the broker."""
        self._link.on_connected(self._everything.set)

    def step(self) -> None:
        """Send one batch and write down what the broker acknowledged.

        Raises:
            BrokerUnavailableError: Some of the batch was not acknowledged; it is sent again.
        """
        if not self._link.connected:
            return
        public_key = self._signer.public_key
        published = self._approvals.published()
        if public_key.hex() not in published.instruction_keys:
            self._waits = ["every desired state waits: the signed metadata that list its key are not published yet"]
            return
        if self._everything.is_set() or public_key != self._public_key:
            self._everything.clear()
            with self._database.transaction() as session:
                session.execute(sa.update(Device).where(Device.desired_sequence > 0).values(published_sequence=0))
            self._refused.clear()
            self._public_key = public_key
        sent: list[tuple[_Wanted, Future[None]]] = []
        for wanted in self._pending(published):
            payload = self._payload(wanted)
            if payload is not None:
                topic = device_topic(wanted.device_id, DeviceTopic.DESIRED)
                sent.append((wanted, self._link.publish(topic, payload, retain=True)))
        self._waits = self._held_back(published)
        acknowledged, failure = _wait(sent)
        if acknowledged:
            with self._database.transaction() as session:
                for wanted in acknowledged:
                    session.execute(
                        sa.update(Device)
                        .where(Device.id == wanted.device_id, Device.published_sequence < wanted.sequence)
                        .values(published_sequence=wanted.sequence)
                    )
        if failure is not None:
            raise failure

    def _pending(self, published: Published) -> list[_Wanted]:
        """What is to be sent and may be; what is held back takes no place in the batch."""
        with self._database.reading() as session:
            rows = session.execute(
                sa.select(Device, Release.envelope, Release.approved_version)
                .outerjoin(Release, Release.id == Device.desired_release)
                .where(
                    Device.desired_sequence > Device.published_sequence,
                    Device.revoked.is_(False),
                    Device.desired_release.in_(["", *published.releases]),
                )
                .order_by(Device.id)
                .limit(BATCH + len(self._refused))
            ).all()
            spread_ms = self._spread_ms(session) if rows else 0
            kinds = [(device.desired_release, device.profile_sha256) for device, _, _ in rows]
            preferred = self._preferred(session, kinds) if rows else {}
        wanted = [
            _Wanted(
                device_id=device.id,
                sequence=device.desired_sequence,
                release_id=device.desired_release,
                rollout_id=device.desired_rollout,
                probation_ms=device.desired_probation_ms,
                envelope=envelope,
                approved_version=int(version or 0),
                reconnect_spread_ms=spread_ms,
                preferred=tuple(preferred.get((device.desired_release, device.profile_sha256), ())),
            )
            for device, envelope, version in rows
        ]
        return [
            one for one in wanted if self._refused.get(one.device_id) != one.sequence and _approved(one, published)
        ][:BATCH]

    def _held_back(self, published: Published) -> list[str]:
        with self._database.reading() as session:
            rows = session.execute(
                sa.select(Device.desired_release, sa.func.coalesce(Release.state, ""), sa.func.count())
                .outerjoin(Release, Release.id == Device.desired_release)
                .where(
                    Device.desired_sequence > Device.published_sequence,
                    Device.revoked.is_(False),
                    Device.desired_release.not_in(["", *published.releases]),
                )
                .group_by(Device.desired_release, Release.state)
                .order_by(Device.desired_release)
            ).all()
        waits = []
        for release_id, state, count in rows:
            why = "the signed metadata that approve it are not published yet"
            if not state:
                why = "there is no such release"
            elif state != "available":
                why = f"it is {state}"
            waits.append(f"{count} devices wait for release {release_id}: {why}")
        return waits

    def _payload(self, wanted: _Wanted) -> bytes | None:
        """The signed message; ``None``, logged once per sequence, for a state that cannot be sent."""
        state = DesiredState(
            device_id=wanted.device_id,
            sequence=wanted.sequence,
            issued_unix_ms=now_ms(),
            rollout_id=wanted.rollout_id,
            probation_ms=wanted.probation_ms,
            reconnect_spread_ms=wanted.reconnect_spread_ms,
            preferred_variants=wanted.preferred,
        )
        if wanted.release_id and wanted.envelope is not None:
            state.release.CopyFrom(SignedEnvelope.FromString(wanted.envelope))
        payload = self._signer.sign(DESIRED, state.SerializeToString()).SerializeToString()
        if len(payload) > MESSAGE_BYTES - 256:
            self._refuse(wanted, f"its desired state has {len(payload)} bytes, more than a message can carry")
            return None
        return payload

    def _refuse(self, wanted: _Wanted, why: str) -> None:
        self._refused[wanted.device_id] = wanted.sequence
        log.error("device %s, sequence %d is not published: %s", wanted.device_id, wanted.sequence, why)


def _approved(wanted: _Wanted, published: Published) -> bool:
    """Whether devices can know that exactly this envelope is approved, under this number or a later one."""
    if not wanted.release_id:
        return True
    approved = published.releases.get(wanted.release_id)
    return (
        approved is not None
        and wanted.envelope is not None
        and approved.version >= wanted.approved_version
        and approved.sha256 == hashlib.sha256(wanted.envelope).hexdigest()
    )


def _wait(
    sent: Sequence[tuple[_Wanted, Future[None]]],
) -> tuple[list[_Wanted], BrokerUnavailableError | None]:
    """What was acknowledged within the deadline, and the first failure."""
    until = time.monotonic() + ACKNOWLEDGE_S
    acknowledged: list[_Wanted] = []
    failure: BrokerUnavailableError | None = None
    for wanted, future in sent:
        try:
            future.result(max(0.0, until - time.monotonic()))
        except BrokerUnavailableError as error:
            failure = failure or error
        except TimeoutError:
            failure = failure or BrokerUnavailableError(f"no acknowledgement in {ACKNOWLEDGE_S:.0f} s")
        else:
            acknowledged.append(wanted)
    return acknowledged, failure
