"""From rows to documents. Pure: what several tables are needed for comes in as arguments."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from skerry_contract.manifest import chunk_count, parse_manifest
from skerry_contract.site import ADDRESS_LABEL, GATEWAY_ROLE, SITE_LABEL
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_server.api import documents as doc
from skerry_server.api import oversight_documents as oversight
from skerry_server.api.queries import LabelledAccuracy
from skerry_server.incidents.guards import TRAINABLE
from skerry_server.incidents.incident_machine import TRANSITIONS as INCIDENT_TRANSITIONS
from skerry_server.rollouts.rollout_machine import ACTIVE as ACTIVE_ROLLOUTS
from skerry_server.store.tables import (
    Candidate,
    Cohort,
    Device,
    DriftWindow,
    Incident,
    Release,
    Rollout,
    RolloutDevice,
)


def device(row: Device, accuracy: LabelledAccuracy | None) -> doc.DeviceDocument:
    """A device with the accuracy that its labels tell, if any."""
    return doc.DeviceDocument(
        id=row.id,
        kind=row.kind,
        site=site(row),
        device_class=row.device_class,
        agent_version=row.agent_version,
        labels=texts(row.labels),
        enrolled_ms=row.enrolled_ms,
        revoked=row.revoked,
        certificate_not_after_ms=row.certificate_not_after_ms,
        online=row.online,
        last_seen_ms=row.last_seen_ms,
        active_release=row.active_release,
        active_variant=row.active_variant,
        target_release=row.target_release,
        update_status=row.update_status,
        update_detail=row.update_detail,
        chunks_done=row.chunks_done,
        chunks_total=row.chunks_total,
        reported_rollout=row.reported_rollout,
        labelled_samples=row.labelled_samples,
        flower_node_id=row.flower_node_id,
        ineligible_reason=row.ineligible_reason,
        health=row.health,
        accuracy=accuracy
        and doc.AccuracyDocument(
            labelled=accuracy.labelled,
            correct=accuracy.correct,
            value=accuracy.correct / accuracy.labelled if accuracy.labelled else None,
        ),
        desired=doc.DesiredDocument(
            release=row.desired_release,
            rollout=row.desired_rollout,
            sequence=row.desired_sequence,
            published=row.published_sequence >= row.desired_sequence,
        ),
    )


def site(row: Device) -> doc.SiteDocument | None:
    """What a gateway told of its site; None for a device."""
    if row.kind != GATEWAY_ROLE:
        return None
    numbers = {
        name: int(row.site_report.get(name, 0)) for name in ("devices", "connected", "round", "asked", "counted")
    }
    labels = texts(row.labels)
    return doc.SiteDocument(
        site=labels.get(SITE_LABEL, ""),
        address=labels.get(ADDRESS_LABEL, ""),
        campaign_id=str(row.site_report.get("campaign_id", "")),
        **numbers,
    )


def cohort(row: Cohort, device_count: int) -> doc.CohortDocument:
    """A cohort with its size now."""
    return doc.CohortDocument(
        id=row.id, name=row.name, selector=texts(row.selector), device_count=device_count, created_ms=row.created_ms
    )


def candidate(row: Candidate) -> doc.CandidateDocument:
    """A candidate with its gates."""
    return doc.CandidateDocument(
        id=row.id,
        task=row.task,
        origin=row.origin,
        state=row.state,
        parent_release=row.parent_release,
        campaign_id=row.campaign_id,
        incident_id=row.incident_id,
        bundle_sha256=row.bundle_sha256,
        metrics=numbers(row.metrics),
        gates=[doc.GateDocument.model_validate(gate) for gate in row.gates.get("gates", [])],
        mlflow_run_id=row.mlflow_run_id,
        mlflow_model_version=row.mlflow_model_version,
        created_ms=row.created_ms,
    )


def release(row: Release, *, champion: bool) -> doc.ReleaseDocument:
    """A release without its envelope."""
    return doc.ReleaseDocument(
        id=row.id,
        task=row.task,
        sequence=row.sequence,
        state=row.state,
        origin=row.origin,
        candidate_id=row.candidate_id,
        parent_release=row.parent_release,
        bundle_sha256=row.bundle_sha256,
        metrics=numbers(row.metrics),
        champion=champion,
        created_ms=row.created_ms,
    )


def manifest(row: Release) -> doc.ManifestDocument:
    """What was signed."""
    envelope = SignedEnvelope.FromString(row.envelope)
    signed = parse_manifest(envelope.payload)
    return doc.ManifestDocument(
        release_id=signed.release_id,
        task=signed.task,
        sequence=signed.sequence,
        bundle_sha256=signed.bundle_sha256.hex(),
        parent_release=signed.parent_release_id,
        created_ms=signed.created_unix_ms,
        expires_ms=signed.expires_unix_ms,
        files=[
            doc.FileDocument(
                path=entry.path,
                size=entry.size,
                sha256=entry.sha256.hex(),
                chunks=chunk_count(entry.size, entry.chunk_bytes),
            )
            for entry in signed.files
        ],
        variants=[
            doc.VariantDocument(
                name=variant.name,
                path=variant.path,
                device_classes=list(variant.device_classes),
                golden_tolerance=variant.golden_tolerance,
            )
            for variant in signed.variants
        ],
        signed_by=[signature.key_id for signature in envelope.signatures],
        envelope_base64=base64.b64encode(row.envelope).decode(),
    )


def rollout(row: Rollout, devices: Iterable[RolloutDevice]) -> doc.RolloutDocument:
    """A rollout with its devices."""
    return doc.RolloutDocument(
        id=row.id,
        release_id=row.release_id,
        task=row.task,
        cohort_id=row.cohort_id,
        state=row.state,
        detail=row.detail,
        finished=row.state not in ACTIVE_ROLLOUTS,
        succeeded=row.state == "finished",
        canary_percent=row.canary_percent,
        probation_ms=row.probation_ms,
        stage_deadline_ms=row.stage_deadline_ms,
        stage_started_ms=row.stage_started_ms,
        incident_id=row.incident_id,
        created_by=row.created_by,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        devices=[doc.RolloutDeviceDocument.model_validate(each) for each in devices],
    )


def incident(row: Incident) -> oversight.IncidentDocument:
    """An incident with what a person may do about it."""
    possible = INCIDENT_TRANSITIONS.get(row.state, {})
    return oversight.IncidentDocument(
        id=row.id,
        kind=row.kind,
        task=row.task,
        release_id=row.release_id,
        state=row.state,
        severity=row.severity,
        detail=row.detail,
        finished=not possible,
        actions=[
            action
            for action in ("approve", "dismiss")
            if action in possible and (action != "approve" or row.kind in TRAINABLE)
        ],
        device_ids=list(row.device_ids),
        evidence=row.evidence,
        policy=row.policy,
        attempts=row.attempts,
        campaign_id=row.campaign_id,
        candidate_id=row.candidate_id,
        release_made=row.release_made,
        rollout_id=row.rollout_id,
        opened_ms=row.opened_ms,
        updated_ms=row.updated_ms,
    )


def drift(task: str, windows: Iterable[DriftWindow]) -> oversight.DriftDocument:
    """Newest verdicts of one task's devices; a device may lack a feature."""
    matrix = oversight.DriftDocument(task=task, features=[], devices=[])
    known = set(oversight.DriftCellDocument.model_fields)
    for window in windows:
        cells = {
            str(name): oversight.DriftCellDocument.model_validate({key: cell[key] for key in known & cell.keys()})
            for name, cell in window.verdict.get("features", {}).items()
        }
        matrix.features.extend(name for name in cells if name not in matrix.features)
        matrix.devices.append(
            oversight.DeviceDriftDocument(
                device_id=window.device_id,
                release_id=window.release_id,
                status=str(window.verdict.get("status", "")),
                rows=window.rows,
                ended_ms=window.ended_ms,
                cells=cells,
            )
        )
    return matrix


def texts(values: dict[str, Any]) -> dict[str, str]:
    """Labels as text, whatever a store holds."""
    return {str(name): str(value) for name, value in values.items()}


def numbers(values: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a document of metrics; anything else is left out."""
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
