"""Rows of campaigns as the API and the console show them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from skerry_server.api import campaign_documents as doc
from skerry_server.federation import campaign_machine as machine
from skerry_server.federation import privacy_ledger
from skerry_server.federation.participants.eligibility import EXCLUSIONS
from skerry_server.federation.participants.participation import ACCEPTED, DECLINED, EXCLUDED, INVITED, count_reasons
from skerry_server.federation.rounds import personal_comparison
from skerry_server.federation.settings import load_settings
from skerry_server.store.tables import Campaign, CampaignParticipant, CampaignRound

#: Most participants of one campaign that are listed.
SHOWN: Final = 500
_ORDER = (ACCEPTED, INVITED, DECLINED, EXCLUDED)


def rounds_planned(row: Campaign) -> int:
    """How many rounds a campaign's settings ask for; 0 when they do not say."""
    planned = row.settings.get("rounds", 0)
    return planned if isinstance(planned, int) else 0


def phase(row: Campaign, progress: Mapping[str, Any]) -> str:
    """Phase of the round in progress, as the campaign's job told it; empty when no round is."""
    told = str(progress.get("phase", ""))
    return told if row.state == machine.RUNNING and told in machine.PHASES else ""


def deadline_ms(row: Campaign) -> int:
    """When the campaign's state has lasted too long; 0 in a final state, and for settings of an unknown form."""
    if row.state not in machine.ACTIVE:
        return 0
    try:
        settings = load_settings(row.settings)
    except TypeError:
        return 0
    limit_ms = machine.deadline_ms(
        row.state,
        rounds=settings.rounds,
        round_deadline_ms=settings.round_deadline_ms,
        recruiting_deadline_ms=settings.recruiting_deadline_ms,
    )
    return row.updated_ms + limit_ms


def spent(rounds: Sequence[CampaignRound]) -> doc.SpendingDocument:
    """What the committed rounds cost; privacy as it stands after the last one."""

    def total(name: str) -> float:
        return sum(float(each.metrics.get(name, 0.0)) for each in rounds)

    accountant: Mapping[str, Any] = rounds[-1].privacy if rounds else {}
    return doc.SpendingDocument(
        bytes_down=int(total("bytes_down")),
        bytes_up=int(total("bytes_up")),
        minutes=sum(each.seconds for each in rounds) / 60.0,
        energy_wh=total("energy_wh"),
        epsilon=accountant.get("epsilon"),
        delta=accountant.get("delta"),
    )


def personal(rounds: Sequence[CampaignRound]) -> doc.PersonalDocument | None:
    """Everybody's model against the devices' own, in the newest round that says; None if none does."""
    for each in reversed(rounds):
        found = personal_comparison.of_metrics(each.metrics)
        if len(found) == len(personal_comparison.FIGURES):
            return doc.PersonalDocument(
                round=each.number,
                devices=int(found[personal_comparison.DEVICES]),
                global_accuracy=found[personal_comparison.GLOBAL_ACCURACY],
                personal_accuracy=found[personal_comparison.ACCURACY],
                gaining=int(found[personal_comparison.GAINING]),
                losing=int(found[personal_comparison.LOSING]),
            )
    return None


def reasons(participants: Sequence[CampaignParticipant]) -> list[doc.ReasonDocument]:
    """Why devices stay out, the most frequent reason first."""
    return [
        doc.ReasonDocument(
            code=each.code, meaning=EXCLUSIONS.get(each.code, each.code), devices=each.devices, example=each.example
        )
        for each in count_reasons(participants)
    ]


def campaign(row: Campaign, rounds: Sequence[CampaignRound], *, progress: Mapping[str, Any]) -> doc.CampaignDocument:
    """A campaign with its committed rounds; ``progress`` is what its job told last, empty without a job."""
    return doc.CampaignDocument.model_validate(_fields(row, rounds, progress))


def campaign_detail(
    row: Campaign,
    rounds: Sequence[CampaignRound],
    participants: Sequence[CampaignParticipant],
    *,
    progress: Mapping[str, Any],
    total: privacy_ledger.Total | None = None,
    limit: float = 0.0,
) -> doc.CampaignDetailDocument:
    """A campaign with its rounds, its devices and the reasons of those that stay out; ``limit`` of the ``total``."""
    return doc.CampaignDetailDocument.model_validate(
        {
            **_fields(row, rounds, progress),
            "privacy_total": {**asdict(total), "limit": limit} if total is not None and total.private else None,
            "reasons": reasons(participants),
            "devices": dict(sorted(Counter(each.state for each in _own(participants)).items())),
            "participants": [
                doc.ParticipantDocument.model_validate(each)
                for each in sorted(participants, key=lambda each: (_ORDER.index(each.state), each.device_id))[:SHOWN]
            ],
        }
    )


def _own(participants: Sequence[CampaignParticipant]) -> list[CampaignParticipant]:
    """Without the gateways that others take part through: those are counted already."""
    gateways = {each.gateway_id for each in participants}
    return [each for each in participants if each.device_id not in gateways]


def _fields(row: Campaign, rounds: Iterable[CampaignRound], progress: Mapping[str, Any]) -> dict[str, Any]:
    committed = list(rounds)
    return {
        "id": row.id,
        "task": row.task,
        "base_release": row.base_release,
        "cohort_id": row.cohort_id,
        "strategy": row.strategy,
        "settings": row.settings,
        "rounds_planned": rounds_planned(row),
        "state": row.state,
        "phase": phase(row, progress),
        "detail": row.detail,
        "waits_for": machine.WAITS_FOR.get(row.state, ""),
        "deadline_ms": deadline_ms(row),
        "actions": list(machine.actions(row.state)),
        "finished": row.state not in machine.ACTIVE,
        "succeeded": row.state == machine.FINISHED,
        "incident_id": row.incident_id,
        "flower_run_id": row.flower_run_id,
        "mlflow_run_id": row.mlflow_run_id,
        "candidate_id": row.candidate_id,
        "created_by": row.created_by,
        "created_ms": row.created_ms,
        "approved_by": row.approved_by,
        "approved_ms": row.approved_ms,
        "updated_ms": row.updated_ms,
        "spent": spent(committed),
        "personal": personal(committed),
        "calibration": progress.get("calibration") or None,
        "rounds": [doc.CampaignRoundDocument.model_validate(each) for each in committed],
    }
