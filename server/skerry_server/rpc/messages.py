"""From rows to the messages of ``fleet_api.proto``. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from skerry_contract.v1 import fleet_api_pb2 as pb
from skerry_server.api.campaign_documents import CampaignDetailDocument, CampaignDocument, CampaignRoundDocument
from skerry_server.api.views import numbers, texts
from skerry_server.store.tables import (
    AuditRow,
    Cohort,
    Device,
    Incident,
    Release,
    Rollout,
    RolloutDevice,
)


def device(row: Device) -> pb.Device:
    """A device."""
    return pb.Device(
        id=row.id,
        device_class=row.device_class,
        online=row.online,
        active_release=row.active_release,
        target_release=row.target_release,
        update_status=row.update_status,
        update_detail=row.update_detail,
        labelled_samples=row.labelled_samples,
        agent_version=row.agent_version,
        last_seen_unix_ms=row.last_seen_ms,
        labels=texts(row.labels),
        ineligible_reason=row.ineligible_reason,
    )


def cohort(row: Cohort, device_count: int) -> pb.Cohort:
    """A cohort with its size now."""
    return pb.Cohort(id=row.id, name=row.name, selector=texts(row.selector), device_count=device_count)


def release(row: Release) -> pb.Release:
    """A release; a metric that is not a number is left out."""
    return pb.Release(
        id=row.id,
        task=row.task,
        sequence=row.sequence,
        bundle_sha256=row.bundle_sha256,
        origin=row.origin,
        parent_id=row.parent_release,
        state=row.state,
        metrics={name: value for name, value in numbers(row.metrics).items() if value is not None},
        created_unix_ms=row.created_ms,
    )


def rollout(row: Rollout, devices: Iterable[RolloutDevice]) -> pb.Rollout:
    """A rollout with its devices."""
    return pb.Rollout(
        id=row.id,
        release_id=row.release_id,
        cohort_id=row.cohort_id,
        state=row.state,
        detail=row.detail,
        devices=[
            pb.RolloutDevice(device_id=each.device_id, stage=each.stage, state=each.state, detail=each.detail)
            for each in devices
        ],
        created_unix_ms=row.created_ms,
    )


def campaign(row: CampaignDocument) -> pb.Campaign:
    """A campaign with its committed rounds, and with reasons when it is shown in detail."""
    spent = row.spent
    return pb.Campaign(
        id=row.id,
        task=row.task,
        base_release=row.base_release,
        strategy=row.strategy,
        state=row.state,
        detail=row.detail,
        rounds_planned=max(0, row.rounds_planned),
        rounds=_rounds(row.rounds),
        created_unix_ms=row.created_ms,
        candidate_id=row.candidate_id,
        cohort_id=row.cohort_id,
        phase=row.phase,
        waits_for=row.waits_for,
        deadline_unix_ms=row.deadline_ms,
        actions=row.actions,
        spent=pb.CampaignSpending(
            bytes_down=spent.bytes_down,
            bytes_up=spent.bytes_up,
            minutes=spent.minutes,
            energy_wh=spent.energy_wh,
            epsilon=spent.epsilon or 0.0,
            delta=spent.delta or 0.0,
        ),
        reasons=[
            pb.CampaignReason(code=each.code, meaning=each.meaning, devices=each.devices, example=each.example)
            for each in (row.reasons if isinstance(row, CampaignDetailDocument) else ())
        ],
        settings_json=json.dumps(row.settings, sort_keys=True),
        approved_by=row.approved_by,
    )


def _rounds(rounds: Sequence[CampaignRoundDocument]) -> list[pb.CampaignRound]:
    return [
        pb.CampaignRound(
            number=each.number,
            invited=each.invited,
            accepted=each.accepted,
            accuracy=float("nan") if each.accuracy is None else each.accuracy,
            loss=float("nan") if each.loss is None else each.loss,
            seconds=each.seconds,
            metrics={name: value for name, value in each.metrics.items() if value is not None},
        )
        for each in rounds
    ]


def incident(row: Incident) -> pb.Incident:
    """An incident."""
    return pb.Incident(
        id=row.id,
        kind=row.kind,
        task=row.task,
        release_id=row.release_id,
        state=row.state,
        severity=row.severity,
        detail=row.detail,
        device_ids=row.device_ids,
        opened_unix_ms=row.opened_ms,
        campaign_id=row.campaign_id,
        rollout_id=row.rollout_id,
    )


def audit_entry(row: AuditRow) -> pb.AuditEntry:
    """An entry of the ledger."""
    return pb.AuditEntry(
        sequence=row.sequence,
        at_unix_ms=row.at_ms,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        detail_json=json.dumps(row.detail, sort_keys=True),
        hash=row.hash,
        previous_hash=row.previous_hash,
    )
