"""Publishes what is wanted of each device: a signed, retained DesiredState on the device's own topic.

The store is the truth. Whoever wants something changes the ``desired_*`` columns and adds one to
``desired_sequence``; this publisher sends what is above ``published_sequence`` and moves that one up after the broker's
acknowledgement. A kill at any point only means that the same sequence is published again, which devices ignore.

A broker that was killed may have lost retained messages: after every connection everything is published again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import sqlalchemy as sa

from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.signing import DESIRED, EnvelopeSigner
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState
from skerry_server.clock import now_ms
from skerry_server.link import BrokerUnavailableError, ServerLink
from skerry_server.store.database import Database
from skerry_server.store.tables import Device, Release

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


class DesiredPublisher:
    """The controller."""

    name = "desired-state"
    period_s = 0.25

    def __init__(self, database: Database, link: ServerLink, signer: EnvelopeSigner) -> None:
        self._database = database
        self._link = link
        self._signer = signer
        self._everything = threading.Event()
        self._refused: dict[str, int] = {}

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
        if self._everything.is_set():
            self._everything.clear()
            with self._database.transaction() as session:
                session.execute(sa.update(Device).where(Device.desired_sequence > 0).values(published_sequence=0))
            self._refused.clear()
        sent: list[tuple[_Wanted, Future[None]]] = []
        for wanted in self._pending():
            payload = self._payload(wanted)
            if payload is not None:
                topic = device_topic(wanted.device_id, DeviceTopic.DESIRED)
                sent.append((wanted, self._link.publish(topic, payload, retain=True)))
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

    def _pending(self) -> list[_Wanted]:
        with self._database.reading() as session:
            rows = session.execute(
                sa.select(Device, Release.envelope)
                .outerjoin(Release, Release.id == Device.desired_release)
                .where(Device.desired_sequence > Device.published_sequence, Device.revoked.is_(False))
                .order_by(Device.id)
                .limit(BATCH + len(self._refused))
            ).all()
        wanted = [
            _Wanted(
                device_id=device.id,
                sequence=device.desired_sequence,
                release_id=device.desired_release,
                rollout_id=device.desired_rollout,
                probation_ms=device.desired_probation_ms,
                envelope=envelope,
            )
            for device, envelope in rows
        ]
        return [one for one in wanted if self._refused.get(one.device_id) != one.sequence][:BATCH]

    def _payload(self, wanted: _Wanted) -> bytes | None:
        """The signed message; ``None``, logged once per sequence, for a state that cannot be sent."""
        if wanted.release_id and wanted.envelope is None:
            self._refuse(wanted, f"there is no release {wanted.release_id!r}")
            return None
        state = DesiredState(
            device_id=wanted.device_id,
            sequence=wanted.sequence,
            issued_unix_ms=now_ms(),
            rollout_id=wanted.rollout_id,
            probation_ms=wanted.probation_ms,
        )
        if wanted.envelope is not None:
            state.release.CopyFrom(SignedEnvelope.FromString(wanted.envelope))
        payload = self._signer.sign(DESIRED, state.SerializeToString()).SerializeToString()
        if len(payload) > MESSAGE_BYTES - 256:
            self._refuse(wanted, f"its desired state has {len(payload)} bytes, more than a message can carry")
            return None
        return payload

    def _refuse(self, wanted: _Wanted, why: str) -> None:
        self._refused[wanted.device_id] = wanted.sequence
        log.error("device %s, sequence %d is not published: %s", wanted.device_id, wanted.sequence, why)


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
