"""Who took part in what: the rows behind selection, caps, rests and the counts of reasons.

Every function works inside the caller's transaction. A round's configuration calls :func:`choose`; the journal calls
:func:`note_commit` in the transaction that commits a round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.clock import now_ms
from skerry_server.federation.participants import oort
from skerry_server.federation.participants.eligibility import EXCLUSIONS, Conditions, judge_conditions, parse_rules
from skerry_server.federation.settings import CampaignSettings
from skerry_server.store.tables import CampaignParticipant, CampaignRound, CampaignUpdate, Device

#: States of a participant.
EXCLUDED = "excluded"
INVITED = "invited"
ACCEPTED = "accepted"
DECLINED = "declined"
#: Longest reason that is kept (characters).
REASON_CHARACTERS = 500


@dataclass(frozen=True)
class ReasonCount:
    """How many devices of a campaign stay out for one reason.

    Attributes:
        code: A key of :data:`skerry_server.federation.participants.eligibility.EXCLUSIONS`.
        devices: How many.
        example: One device, with its figures.
    """

    code: str
    devices: int
    example: str


def selection_rules(settings: CampaignSettings, devices: int) -> oort.SelectionRules:
    """How a campaign of these settings chooses when ``devices`` take part."""
    return oort.SelectionRules(
        count=settings.asked(devices),
        seed=settings.seed,
        oort=settings.selection == "oort",
        exploration=settings.exploration,
        slow_penalty=settings.slow_penalty,
        fairness=settings.fairness,
        participation_cap=settings.participation_cap,
    )


def choose(
    session: Session,
    campaign_id: str,
    settings: CampaignSettings,
    *,
    round_number: int,
    available: Collection[str] | None = None,
    at_ms: int | None = None,
) -> tuple[str, ...]:
    """The devices that a round asks, sorted. Called again for the same round it fills the places that are free.

    Who was chosen before (the round was resumed, or places were free) stays, also when it is away now: its update may
    be journalled already, or it comes back. Devices that the campaign's rules keep out now, and those that reached the
    participation cap, are not chosen, and their rows say why. Fresh samples are a matter of recruiting: a device that
    trained in the round before has none.

    With ``settings.privacy["sampling"]`` "poisson" the sample is drawn by the privacy plan and given as ``available``:
    all of it that may take part is chosen, and nobody is added when the round is chosen again.

    Args:
        session: Open transaction; the choice is written down in it.
        campaign_id: A campaign whose devices have accepted.
        settings: Of the campaign.
        round_number: From 1.
        available: Devices that can be asked; None: every one that accepted.
        at_ms: Moment for the rules; None: now.
    """
    rows = _accepted(session, campaign_id)
    already = sorted(device for device, row in rows.items() if row.last_selected == round_number)
    reachable = {device for device in rows if available is None or device in available}
    able = _able(session, rows, reachable - set(already), settings, at_ms=now_ms() if at_ms is None else at_ms)
    if settings.privacy.get("sampling", "none") == "poisson":
        chosen = () if already else tuple(able)
    else:
        rules = selection_rules(settings, len(rows))
        records = [
            oort.Record(
                device, rows[device].utility, rows[device].seconds, rows[device].rounds, rows[device].last_round
            )
            for device in able
        ]
        free = replace(rules, count=max(0, rules.count - len(already)))
        chosen = oort.select(records, free, round_number=round_number)
    for device in chosen:
        rows[device].last_selected = round_number
    session.flush()
    return tuple(sorted({*already, *chosen}))


def _accepted(session: Session, campaign_id: str) -> dict[str, CampaignParticipant]:
    query = sa.select(CampaignParticipant).where(
        CampaignParticipant.campaign_id == campaign_id, CampaignParticipant.state == ACCEPTED
    )
    return {row.device_id: row for row in session.scalars(query)}


def _able(
    session: Session,
    rows: dict[str, CampaignParticipant],
    devices: Collection[str],
    settings: CampaignSettings,
    *,
    at_ms: int,
) -> list[str]:
    """Which of the devices the campaign's rules let into a round now, sorted; the others' rows say why not."""
    rules = replace(parse_rules(settings.eligibility), minimum_fresh=0)
    told: dict[str, Conditions] = {}
    if rules.asks_for_conditions:
        for found in session.scalars(sa.select(Device).where(Device.id.in_(devices))):
            told[found.id] = Conditions.from_document(found.conditions, told_ms=found.conditions_ms)
    able = []
    for device in sorted(devices):
        row = rows[device]
        if settings.participation_cap and row.rounds >= settings.participation_cap:
            row.reason_code, row.reason = "capped", f"took part in {row.rounds} rounds"
            continue
        out = judge_conditions(rules, told.get(device, Conditions()), at_ms=at_ms)
        row.reason_code, row.reason = ("", "") if out is None else (out.code, out.reason)
        if out is None:
            able.append(device)
    return able


def note_commit(session: Session, committed: CampaignRound, updates: Sequence[CampaignUpdate]) -> None:
    """A round is committed: count the devices whose updates are in it, keep what selection needs of them.

    Called in the transaction of the commit, so that a participation counts exactly once. An update that is no device's
    (a secure sum) counts for those that were chosen for the round and did not fail.

    Args:
        session: The transaction that commits.
        committed: The round; its ``failures`` become the newest reasons of the devices that it names.
        updates: What counted; of their metrics "seconds" and "squared_loss" are used, where there are any.
    """
    rows = _accepted(session, committed.campaign_id)
    received_ms: dict[str, int] = {}
    for update in updates:
        row = rows.get(update.device_id)
        if row is None:
            summed = (name for name, each in rows.items() if each.last_selected == committed.number)
            received_ms.update({name: update.received_ms for name in summed if name not in committed.failures})
            continue
        received_ms[update.device_id] = update.received_ms
        row.seconds = float(update.metrics.get("seconds", -1.0))
        row.utility = oort.statistical_utility(update.examples, float(update.metrics.get("squared_loss", -1.0)))
    for device_id in received_ms:
        row = rows[device_id]
        row.rounds += 1
        row.last_round = committed.number
        row.reason_code, row.reason = "", ""
    for device in session.scalars(sa.select(Device).where(Device.id.in_(received_ms))):
        device.participations += 1
        device.last_participation_ms = max(device.last_participation_ms, received_ms[device.id])
    _note_failures(rows, committed.failures)
    session.flush()


def note_failures(session: Session, campaign_id: str, failures: Mapping[str, str]) -> None:
    """A round came to nothing: device to what became of it, for those that count why devices stay out."""
    _note_failures(_accepted(session, campaign_id), failures)
    session.flush()


def _note_failures(rows: Mapping[str, CampaignParticipant], failures: Mapping[str, object]) -> None:
    for device_id, reason in failures.items():
        row = rows.get(device_id)
        if row is not None:
            code, text = split_reason(str(reason))
            row.reason_code, row.reason = code, text[:REASON_CHARACTERS]


def split_reason(reason: str) -> tuple[str, str]:
    """Code and text of what a device said in a round: "hot: 91 °C" is ("hot", "91 °C"); else the code is "failed"."""
    code, separator, text = reason.partition(": ")
    return (code, text) if separator and code in EXCLUSIONS else ("failed", reason)


def count_reasons(participants: Sequence[CampaignParticipant]) -> list[ReasonCount]:
    """Why devices stay out of a campaign, the most frequent reason first."""
    grouped: dict[str, list[CampaignParticipant]] = {}
    for row in participants:
        if row.reason_code:
            grouped.setdefault(row.reason_code, []).append(row)
    counts = [
        ReasonCount(code, len(rows), f"{rows[0].device_id}: {rows[0].reason}".removesuffix(": "))
        for code, rows in grouped.items()
    ]
    return sorted(counts, key=lambda each: (-each.devices, each.code))
