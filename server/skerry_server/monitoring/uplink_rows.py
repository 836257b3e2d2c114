"""The rows that a checked message becomes.

Moments in rows are the device's, since a report may have waited for days; a clock that cannot be right (before the
device was enrolled, or ahead of ours) is replaced by the moment of arrival.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.campaign import STAY_OUT
from skerry_contract.v1.telemetry_pb2 import (
    CampaignResponse,
    DeviceConditions,
    DriftReport,
    HealthReport,
    LabelReport,
    UpdateEvent,
    UplinkMessage,
)
from skerry_server.fitness.ledger import store_fitness
from skerry_server.store.tables import (
    CampaignParticipant,
    Device,
    DriftWindow,
    HealthRow,
    LabelRow,
    UpdateEventRow,
)

#: How far a device's clock may be ahead before it is not believed (milliseconds).
AHEAD_MS = 300_000
#: How long before its enrolment a report may have been made (milliseconds).
BEFORE_MS = 86_400_000
#: Longest explanation that is kept (characters).
DETAIL = 2_000


def believable_ms(claimed_ms: int, *, enrolled_ms: int, received_ms: int) -> int:
    """``claimed_ms`` if the device's clock may be right, else ``received_ms``."""
    return claimed_ms if enrolled_ms - BEFORE_MS <= claimed_ms <= received_ms + AHEAD_MS else received_ms


def store_body(session: Session, device: Device, message: UplinkMessage, *, received_ms: int) -> None:
    """Add the rows of a message that passed its checks, signature included, to the transaction.

    Args:
        session: The transaction that also holds the message's key.
        device: Who sent it; its last health is updated.
        message: The message.
        received_ms: When it arrived.
    """
    at_ms = believable_ms(message.created_unix_ms, enrolled_ms=device.enrolled_ms, received_ms=received_ms)
    match message.WhichOneof("body"):
        case "drift":
            _store_drift(session, device.id, message.drift, received_ms=received_ms)
        case "health":
            _store_health(session, device, message.health, at_ms=at_ms)
        case "label":
            _store_label(session, device.id, message.label, at_ms=at_ms)
        case "update":
            claimed = message.update.at_unix_ms
            moment = believable_ms(claimed, enrolled_ms=device.enrolled_ms, received_ms=received_ms)
            _store_update(session, device.id, message.update, at_ms=moment)
        case "campaign":
            _store_campaign(session, device, message.campaign, at_ms=at_ms)
        case "fitness":
            store_fitness(session, device, message.fitness, received_ms=received_ms)


def _store_drift(session: Session, device_id: str, report: DriftReport, *, received_ms: int) -> None:
    identity = {
        "device_id": device_id,
        "boot_id": report.boot_id,
        "window": report.window,
        "release_id": report.release_id,
        "edges_sha256": report.edges_sha256.hex(),
    }
    # A device whose outbox was wiped numbers anew; its window is the same.
    if session.scalar(sa.select(DriftWindow.id).filter_by(**identity)) is not None:
        return
    session.add(
        DriftWindow(
            **identity,
            started_ms=report.started_unix_ms,
            ended_ms=report.ended_unix_ms,
            rows=report.rows,
            body=report.SerializeToString(),
            received_ms=received_ms,
        )
    )
    session.flush()


def _store_health(session: Session, device: Device, report: HealthReport, *, at_ms: int) -> None:
    session.add(
        HealthRow(
            device_id=device.id,
            release_id=report.release_id,
            at_ms=at_ms,
            period_ms=report.period_ms,
            requests=report.requests,
            errors=report.errors,
            latency_p50_us=report.latency_p50_us,
            latency_p99_us=report.latency_p99_us,
            labelled=report.labelled,
            labelled_correct=report.labelled_correct,
            rss_bytes=report.rss_bytes,
            outbox_depth=report.outbox_depth,
        )
    )
    if at_ms >= int((device.health or {}).get("at_ms", 0)):
        device.health = _document(report) | {"at_ms": at_ms}
    if report.HasField("conditions"):
        _note_conditions(device, report.conditions, at_ms=at_ms)


def _store_label(session: Session, device_id: str, report: LabelReport, *, at_ms: int) -> None:
    session.add(
        LabelRow(
            device_id=device_id,
            release_id=report.release_id,
            at_ms=at_ms,
            labelled=report.labelled,
            correct=report.correct,
            confusion={"classes": report.classes, "counts": list(report.confusion)},
        )
    )


def _store_update(session: Session, device_id: str, event: UpdateEvent, *, at_ms: int) -> None:
    session.add(
        UpdateEventRow(
            device_id=device_id,
            release_id=event.release_id,
            rollout_id=event.rollout_id,
            from_state=event.from_state,
            event=event.event,
            to_state=event.to_state,
            detail=_clean(event.detail),
            at_ms=at_ms,
        )
    )


def _store_campaign(session: Session, device: Device, response: CampaignResponse, *, at_ms: int) -> None:
    """The newest answer counts. An answer to an invitation that nobody made is kept as its key only."""
    if response.HasField("conditions"):
        _note_conditions(device, response.conditions, at_ms=at_ms)
    participant = session.get(CampaignParticipant, (response.campaign_id, device.id))
    if participant is None or participant.state == "excluded":
        return
    participant.state = "accepted" if response.accepted else "declined"
    participant.reason = _clean(response.reason)
    known = response.reason_code if response.reason_code in STAY_OUT else "declined"
    participant.reason_code = "" if response.accepted else known
    participant.conditions = _conditions(response.conditions)
    participant.flower_node_id = str(response.flower_node_id) if response.flower_node_id else ""


def _note_conditions(device: Device, conditions: DeviceConditions, *, at_ms: int) -> None:
    """The newest conditions of a device count, whichever message brought them."""
    if at_ms >= device.conditions_ms:
        device.conditions, device.conditions_ms = _conditions(conditions), at_ms


def _conditions(conditions: DeviceConditions) -> dict[str, Any]:
    """The fields that the device measures, by name."""
    return {field.name: value for field, value in conditions.ListFields()}


def _document(report: HealthReport) -> dict[str, Any]:
    """The scalar fields by name, those that were not set included."""
    return {
        field.name: getattr(report, field.name)
        for field in report.DESCRIPTOR.fields
        if field.type != field.TYPE_MESSAGE
    }


def _clean(text: str) -> str:
    """Short enough to keep, and without NUL, which PostgreSQL cannot store."""
    return text.replace("\0", "")[:DETAIL]
